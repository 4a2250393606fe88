"""Information flow in a Gemma3n checkpoint: `python information_flow.py --help`."""

import sys

from transformers_agci.cli import main

if __name__ == "__main__":
    sys.exit(main(["flow", "--family", "gemma3n", *sys.argv[1:]]))
