"""Information flow in a Qwen2.5-VL checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["flow", "--family", "Qwen2.5-VL", *sys.argv[1:]])
