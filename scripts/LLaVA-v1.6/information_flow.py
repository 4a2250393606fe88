"""Information flow in a LLaVA-v1.6 checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["flow", "--family", "LLaVA-v1.6", *sys.argv[1:]])
