"""The options of the commands that read result files of the position probe: metrics, evidence, report, compare."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from transformers_agci.commands.options.types import number, path
from transformers_agci.errors import InputError
from transformers_agci.storage.folder import same_bytes
from transformers_agci.storage.overlap import same_place
from transformers_agci.storage.reading import path_text

RESULTS = "result files, the baseline first"


def add_results_options(parser: argparse.ArgumentParser, *flags: str, what: str = RESULTS, metavar: str = "R") -> None:
    """The result files, positional where they have no `flags`, with --negatives_file and --labels."""
    files = parser.add_argument(*(flags or ["results"]), nargs="+", type=path, metavar=metavar, help=what)
    files.required = True
    negatives = "the results on the negatives, one per result file, where they are files of their own"
    spellings = ("--negatives_file", "--negatives_files")
    parser.add_argument(*spellings, nargs="+", type=path, default=[], metavar="N", help=negatives)
    parser.add_argument("--labels", nargs="+", default=[], metavar="L", help="names of the results")


def say_equal(results: Sequence[Path]) -> None:
    """Name every two results that are one file, or hold the same bytes: a comparison of them says nothing."""
    for first, second in itertools.combinations(results, 2):
        if same_place(first, second):
            print(f"{path_text(second)} is given twice: the two results are equal in every row.\n")
        elif same_bytes(first, second):
            print(f"{path_text(first)} and {path_text(second)}: the two results are equal in every row.\n")


def add_controls_options(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """--text_only_file and --blank_image_file: results without the image, which stand beside the others."""
    for control, what in (("text_only", "without an image"), ("blank_image", "on a blank image")):
        said = f"answers {what} (agci probe --{control}): their Yes-rate stands beside the results"
        group.add_argument(f"--{control}_file", nargs="+", type=path, default=[], metavar="T", help=said)


def add_margin_option(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """--margin, which `margin` reads."""
    group.add_argument(
        "--margin",
        type=number,
        metavar="POINTS",
        help="balanced accuracies that differ by less count as equal; state it before you look",
    )


def margin(args: argparse.Namespace) -> float | None:
    """The equivalence margin as a share; None where none was stated."""
    if args.margin is None:
        return None
    if not 0 < args.margin < 100:
        raise InputError(f"--margin must lie between 0 and 100 points, but is {args.margin:g}.")
    return float(args.margin / 100)
