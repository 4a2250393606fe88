"""The position probe on a Gemma3n checkpoint: `python eval_laion_bias_data.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["probe", "--family", "Gemma3n", *sys.argv[1:]])
