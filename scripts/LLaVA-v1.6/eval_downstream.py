"""The downstream benchmarks on a LLaVA-v1.6 checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["downstream", "--family", "llava_next", *sys.argv[1:]]))
