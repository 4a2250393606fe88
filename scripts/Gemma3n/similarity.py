"""Similarity maps of a Gemma3n checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["similarity", "--family", "Gemma3n", *sys.argv[1:]])
