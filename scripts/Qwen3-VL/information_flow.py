"""Information flow in a Qwen3-VL checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["flow", "--family", "qwen3_vl", *sys.argv[1:]]))
