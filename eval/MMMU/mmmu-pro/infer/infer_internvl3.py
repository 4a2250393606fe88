"""MMMU-Pro on an InternVL3 checkpoint: `python infer_internvl3.py --help`."""

import sys
from pathlib import Path

from transformers_agci.cli import program

if __name__ == "__main__":
    beside = str(Path(__file__).resolve().parents[1])
    program(["mmmu-pro", "--family", "InternVL3", "--output_root", beside, *sys.argv[1:]])
