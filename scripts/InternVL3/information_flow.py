"""Information flow in an InternVL3 checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["flow", "--family", "InternVL3", *sys.argv[1:]])
