"""Occlusion maps per target position from a results folder: `python prob_results_position.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["occlusion-maps", *sys.argv[1:]])
