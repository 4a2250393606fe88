"""`python -m transformers_agci`: the same as the command `agci`."""

from transformers_agci.cli import program

if __name__ == "__main__":
    program()
