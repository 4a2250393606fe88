"""The downstream benchmarks on an InternVL3 checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["downstream", "--family", "InternVL3", *sys.argv[1:]])
