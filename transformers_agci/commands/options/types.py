"""What the text of an option must be: a whole number, a number, a file; the message says so where it is not."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from transformers_agci.commands.parser import STDOUT
from transformers_agci.errors import short

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least `least` and, if given, at most `most`."""

    def parse(text: str) -> int:
        if not WHOLE.fullmatch(text):
            raise argparse.ArgumentTypeError(f"must be a whole number, but is {short(text)}")
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, but is {value}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, but is {value}")
        return value

    return parse


def add_count(  # noqa: PLR0917 - what a count has
    group: "argparse._ArgumentGroup | argparse.ArgumentParser",
    flag: str,
    default: int,
    what: str,
    least: int = 1,
    most: int | None = None,
    metavar: str = "N",
) -> None:
    """Declare a whole number whose default the help shows."""
    kind = whole(least, most)
    group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{what} (default %(default)s)")


def number(text: str) -> float:
    """The type of an option that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, but is {short(text)}")
    return value


def path(text: str) -> Path:
    """The type of an option that names a file or folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a file or folder, but is {text!r}")
    if "\0" in text:  # from a program that calls `main`; a shell cannot give one
        raise argparse.ArgumentTypeError(f"must be a file or folder, but {short(text)} holds a NUL character")
    return Path(text)


def json_file(text: str) -> Path:
    """The type of --json: a file, or "-" for the standard output, where cli.py then prints nothing else."""
    return Path(STDOUT) if text == "-" else path(text)


SEED = whole(0, 2**32 - 1)
