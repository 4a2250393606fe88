"""MMMU-Pro on a Gemma3n checkpoint: `python infer_gemma3n.py --help`."""

import sys
from pathlib import Path

from transformers_agci.cli import program

if __name__ == "__main__":
    beside = str(Path(__file__).resolve().parents[1])
    program(["mmmu-pro", "--family", "Gemma3n", "--output_root", beside, *sys.argv[1:]])
