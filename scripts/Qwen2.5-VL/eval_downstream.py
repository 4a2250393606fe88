"""The downstream benchmarks on a Qwen2.5-VL checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["downstream", "--family", "qwen2_5_vl", *sys.argv[1:]])
