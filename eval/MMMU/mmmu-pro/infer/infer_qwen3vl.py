"""MMMU-Pro on a Qwen3-VL checkpoint: `python infer_qwen3vl.py --help`."""

import sys
from pathlib import Path

from transformers_agci.cli import program

if __name__ == "__main__":
    beside = str(Path(__file__).resolve().parents[1])
    program(["mmmu-pro", "--family", "Qwen3-VL", "--output_root", beside, *sys.argv[1:]])
