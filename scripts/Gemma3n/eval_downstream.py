"""The downstream benchmarks on a Gemma3n checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["downstream", "--family", "Gemma3n", *sys.argv[1:]])
