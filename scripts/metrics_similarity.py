"""Similarity maps from result files: `python metrics_similarity.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["metrics-similarity", *sys.argv[1:]]))
