"""Information flow in a Gemma3n checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["flow", "--family", "Gemma3n", *sys.argv[1:]])
