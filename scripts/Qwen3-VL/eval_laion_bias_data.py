"""The position probe on a Qwen3-VL checkpoint: `python eval_laion_bias_data.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["probe", "--family", "Qwen3-VL", *sys.argv[1:]])
