"""Similarity maps of a Qwen2.5-VL checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["similarity", "--family", "qwen2_5_vl", *sys.argv[1:]]))
