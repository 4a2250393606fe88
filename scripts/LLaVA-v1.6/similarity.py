"""Similarity maps of a LLaVA-v1.6 checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["similarity", "--family", "LLaVA-v1.6", *sys.argv[1:]])
