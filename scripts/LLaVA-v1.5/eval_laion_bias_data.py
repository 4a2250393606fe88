"""The position probe on a LLaVA-v1.5 checkpoint: `python eval_laion_bias_data.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["probe", "--family", "LLaVA-v1.5", *sys.argv[1:]])
