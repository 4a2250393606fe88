"""The numbers that a command makes of results: their resampling, their file, who else gets them."""

import argparse

from transformers_agci.commands.options.types import SEED, add_count, json_file, whole
from transformers_agci.experiments.defaults import DRAWS, RESAMPLES

TRACKERS = ("wandb", "trackio")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """--json of the commands whose numbers also appear as a table."""
    parser.add_argument("--json", metavar="OUT", type=json_file, help="write all numbers to this file")


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
        choices=TRACKERS,
        help="also hand settings and figures of each result file to this tracker, where it is installed",
    )
