"""The downstream benchmarks on a LLaVA-v1.5 checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["downstream", "--family", "llava", *sys.argv[1:]]))
