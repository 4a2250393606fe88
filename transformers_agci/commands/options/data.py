"""The rows that go in, and the files, figures and draws that come out."""

import argparse
from pathlib import Path

from transformers_agci.commands.options.types import SEED, add_count, json_file, number, path, whole
from transformers_agci.experiments.defaults import DRAW_SEED, DRAWN_ITEMS, DRAWS, PROCESSES, RESAMPLES


def add_rows_options(group: "argparse._ArgumentGroup", default: str = "composites of the embedded atlas") -> None:
    """--eval_file and --img_path, in both spellings of the published scripts."""
    group.add_argument("--eval_file", metavar="F", type=path, help=f"the rows; default: {default}")
    group.add_argument("--img_path", "--image_path", metavar="I", type=path, help="folder of the rows' images")


def add_draw_options(group: "argparse._ArgumentGroup") -> None:
    """--items and --seed of the commands that draw some items of the rows."""
    add_count(group, "--items", DRAWN_ITEMS, "items to draw")
    group.add_argument("--seed", type=SEED, default=DRAW_SEED, help="seed of the draw (default %(default)s)")


def add_output_dir_option(
    group: "argparse._ArgumentGroup | argparse.ArgumentParser", default: str, what: str = "where everything goes"
) -> None:
    """--output_dir, a folder that is made where it is not there."""
    group.add_argument(
        "--output_dir", type=path, default=Path(default), metavar="D", help=f"{what} (default {default})"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """--json of the commands whose numbers also appear as a table."""
    parser.add_argument("--json", metavar="OUT", type=json_file, help="write all numbers to this file")


def add_processes_option(parser: argparse.ArgumentParser) -> None:
    """--processes of the commands that share out what the embedded model is asked."""
    add_count(parser, "--processes", PROCESSES, "one-thread processes", most=1024)


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


def add_planted_bias_option(group: "argparse._ArgumentGroup | argparse.ArgumentParser", default: float) -> None:
    """--planted_bias of the commands that ask the embedded model."""
    group.add_argument(
        "--planted_bias",
        type=number,
        default=default,
        metavar="B",
        help=f"plant a decoder bias of this size, in attention logits (docs/ruler.md; default {default:g})",
    )


def add_draws_options(parser: argparse.ArgumentParser, what: str) -> None:
    """--draws and --seed of the commands that draw maps."""
    add_count(parser, "--draws", DRAWS, what)
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the draws (default 0)")


def add_bootstrap_options(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """--resamples and --seed of the commands that score a benchmark."""
    group.add_argument(
        "--resamples",
        metavar="N",
        type=whole(0),
        default=RESAMPLES,
        help="bootstrap resamples of the score's interval (default %(default)s; 0: no interval)",
    )
    group.add_argument("--seed", metavar="N", type=SEED, default=0, help="seed of the bootstrap (default 0)")


def add_tracking_option(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """--report_to of the commands that write result files with figures."""
    group.add_argument(
        "--report_to",
        choices=("wandb", "trackio"),
        help="also hand settings and figures of each result file to this tracker, where it is installed",
    )
