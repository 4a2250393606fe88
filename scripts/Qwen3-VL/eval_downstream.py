"""The downstream benchmarks on a Qwen3-VL checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["downstream", "--family", "qwen3_vl", *sys.argv[1:]]))
