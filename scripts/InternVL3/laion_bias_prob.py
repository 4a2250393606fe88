"""Occlusion maps of an InternVL3 checkpoint: `python laion_bias_prob.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["occlusion", "--family", "internvl", *sys.argv[1:]]))
