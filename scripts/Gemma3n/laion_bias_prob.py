"""Occlusion maps of a Gemma3n checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["occlusion", "--family", "gemma3n", *sys.argv[1:]]))
