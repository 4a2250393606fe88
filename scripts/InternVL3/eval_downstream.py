"""The downstream benchmarks on an InternVL3 checkpoint: `python eval_downstream.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["downstream", "--family", "internvl", *sys.argv[1:]]))
