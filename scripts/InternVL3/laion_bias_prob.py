"""Occlusion maps of an InternVL3 checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["occlusion", "--family", "InternVL3", *sys.argv[1:]])
