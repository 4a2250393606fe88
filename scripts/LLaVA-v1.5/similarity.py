"""Similarity maps of a LLaVA-v1.5 checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["similarity", "--family", "llava", *sys.argv[1:]]))
