"""The rows that a command asks about, and where what it finds goes."""

import argparse
from pathlib import Path

from transformers_agci.commands.options.types import SEED, add_count, number, path
from transformers_agci.experiments.defaults import DRAW_SEED, DRAWN_ITEMS, PROCESSES


def add_rows_options(group: "argparse._ArgumentGroup", default: str = "composites of the embedded atlas") -> None:
    """--eval_file and --img_path, in both spellings of the published scripts."""
    group.add_argument("--eval_file", metavar="F", type=path, help=f"the rows; default: {default}")
    group.add_argument("--img_path", "--image_path", metavar="I", type=path, help="folder of the rows' images")


def add_drawn_items_options(group: "argparse._ArgumentGroup") -> None:
    """--items and --seed of the commands that draw some items of the rows."""
    add_count(group, "--items", DRAWN_ITEMS, "items to draw")
    group.add_argument("--seed", type=SEED, default=DRAW_SEED, help="seed of the draw (default %(default)s)")


def add_planted_bias_option(group: "argparse._ArgumentGroup | argparse.ArgumentParser", default: float) -> None:
    """--planted_bias of the commands that ask the embedded model."""
    group.add_argument(
        "--planted_bias",
        type=number,
        default=default,
        metavar="B",
        help=f"plant a decoder bias of this size, in attention logits (docs/ruler.md; default {default:g})",
    )


def add_answer_file_option(group: "argparse._ArgumentGroup", default: str, what: str) -> None:
    """--answer_file, in both spellings of the published scripts."""
    group.add_argument(
        "--answer_file",
        "--answers_file",
        type=path,
        default=Path(default),
        metavar="A",
        help=f"where the {what} go (default {default})",
    )


def add_output_dir_option(
    group: "argparse._ArgumentGroup | argparse.ArgumentParser", default: str, what: str = "where everything goes"
) -> None:
    """--output_dir, a folder that is made where it is not there."""
    group.add_argument(
        "--output_dir", type=path, default=Path(default), metavar="D", help=f"{what} (default {default})"
    )


def add_processes_option(parser: argparse.ArgumentParser) -> None:
    """--processes of the commands that share out what the embedded model is asked."""
    add_count(parser, "--processes", PROCESSES, "one-thread processes", most=1024)
