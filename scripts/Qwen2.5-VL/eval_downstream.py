"""The downstream benchmarks on a Qwen2.5-VL checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["downstream", "--family", "qwen2_5_vl", *sys.argv[1:]]))
