"""Similarity maps of an InternVL3 checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["similarity", "--family", "InternVL3", *sys.argv[1:]])
