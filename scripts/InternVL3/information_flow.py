"""Information flow in an InternVL3 checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["flow", "--family", "internvl", *sys.argv[1:]]))
