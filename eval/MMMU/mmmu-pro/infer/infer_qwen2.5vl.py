"""MMMU-Pro on a Qwen2.5-VL checkpoint: `python infer_qwen2.5vl.py --help`."""

import sys
from pathlib import Path

from transformers_agci.cli import program

if __name__ == "__main__":
    beside = str(Path(__file__).resolve().parents[1])
    program(["mmmu-pro", "--family", "Qwen2.5-VL", "--output_root", beside, *sys.argv[1:]])
