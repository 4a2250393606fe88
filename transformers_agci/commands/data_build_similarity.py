"""Build a similarity set: every image alone on the canvas, in each of nine cells.

Source: any images with captions. Written: <output_dir>/<name>.json (JSON Lines), the images in
<output_dir>/<images>/, <name>.manifest.json, and <name>.dropped.jsonl with every pair left out and why.
Started again after an interruption, the same command goes on.
"""

import argparse

from transformers_agci.commands.data_build_probe import add_build_arguments, build_set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_build_arguments(parser, output_dir="similarity_data", name="similarity_840_840")
    parser.set_defaults(negatives=False, pool=0)


def run(args: argparse.Namespace) -> int:
    return build_set("similarity", args)
