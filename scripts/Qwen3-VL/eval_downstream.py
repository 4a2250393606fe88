"""The downstream benchmarks on a Qwen3-VL checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["downstream", "--family", "Qwen3-VL", *sys.argv[1:]])
