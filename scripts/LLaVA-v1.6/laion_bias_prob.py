"""Occlusion maps of a LLaVA-v1.6 checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["occlusion", "--family", "LLaVA-v1.6", *sys.argv[1:]])
