"""The downstream benchmarks on a Qwen2.5-VL checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["downstream", "--family", "Qwen2.5-VL", *sys.argv[1:]])
