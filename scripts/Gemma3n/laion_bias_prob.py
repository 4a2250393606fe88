"""Occlusion maps of a Gemma3n checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["occlusion", "--family", "Gemma3n", *sys.argv[1:]])
