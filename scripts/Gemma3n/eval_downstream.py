"""The downstream benchmarks on a Gemma3n checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["downstream", "--family", "gemma3n", *sys.argv[1:]]))
