"""Information flow in a Qwen2.5-VL checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["flow", "--family", "qwen2_5_vl", *sys.argv[1:]]))
