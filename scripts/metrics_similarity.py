"""Similarity maps from result files: `python metrics_similarity.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["metrics-similarity", *sys.argv[1:]])
