"""Similarity maps of a LLaVA-v1.6 checkpoint: `python similarity.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["similarity", "--family", "llava_next", *sys.argv[1:]]))
