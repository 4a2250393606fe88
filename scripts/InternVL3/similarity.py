"""Similarity maps of an InternVL3 checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["similarity", "--family", "internvl", *sys.argv[1:]]))
