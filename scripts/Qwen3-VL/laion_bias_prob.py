"""Occlusion maps of a Qwen3-VL checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["occlusion", "--family", "Qwen3-VL", *sys.argv[1:]])
