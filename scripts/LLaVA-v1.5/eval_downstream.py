"""The downstream benchmarks on a LLaVA-v1.5 checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["downstream", "--family", "LLaVA-v1.5", *sys.argv[1:]])
