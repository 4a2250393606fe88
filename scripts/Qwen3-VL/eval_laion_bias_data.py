"""The position probe on a Qwen3-VL checkpoint: `python eval_laion_bias_data.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["probe", "--family", "qwen3_vl", *sys.argv[1:]])
