"""Information flow in a Qwen3-VL checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["flow", "--family", "Qwen3-VL", *sys.argv[1:]])
