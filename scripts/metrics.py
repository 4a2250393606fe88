"""The position probe's accuracy map and tables from result files: `python metrics.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["metrics", *sys.argv[1:]])
