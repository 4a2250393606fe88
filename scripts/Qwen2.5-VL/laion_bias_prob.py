"""Occlusion maps of a Qwen2.5-VL checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["occlusion", "--family", "Qwen2.5-VL", *sys.argv[1:]])
