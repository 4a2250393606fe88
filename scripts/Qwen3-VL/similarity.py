"""Similarity maps of a Qwen3-VL checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["similarity", "--family", "qwen3_vl", *sys.argv[1:]])
