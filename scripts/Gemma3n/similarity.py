"""Similarity maps of a Gemma3n checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["similarity", "--family", "gemma3n", *sys.argv[1:]]))
