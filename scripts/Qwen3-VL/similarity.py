"""Similarity maps of a Qwen3-VL checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["similarity", "--family", "Qwen3-VL", *sys.argv[1:]])
