"""MMMU-Pro on a LLaVA-v1.5 checkpoint: `python infer_llava1.5.py --help`."""

import sys
from pathlib import Path

from transformers_agci.cli import program

if __name__ == "__main__":
    beside = str(Path(__file__).resolve().parents[1])
    program(["mmmu-pro", "--family", "LLaVA-v1.5", "--output_root", beside, *sys.argv[1:]])
