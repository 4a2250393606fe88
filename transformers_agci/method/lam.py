"""Lambda, the strength of AGCI: its name in config.json, its range, its spelling in file names."""

import math
from numbers import Real
from typing import Any

from transformers_agci.errors import InputError

LAMBDA_KEY = "global_context_broadcast_lambda"


def validate_lambda(value: Any, source: str) -> float:
    """Return `value` as a float if it is a lambda: a finite number >= 0 (0 is the unmodified model).

    `source` says where the value came from ("--global_context_lambda", "config.json of ..."); it is part of the
    message. Text is refused even where it spells a number: a command line converts it with `parse_lambda`.

    >>> validate_lambda(0.5, "lam")
    0.5
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InputError(f"lambda must be a finite number >= 0 (0 is the unmodified model), but {source} is {value!r}.")
    return float(value)


def parse_lambda(text: str, source: str) -> float:
    """Read a lambda typed by a user, for instance "0.5"; the same range and error as `validate_lambda`."""
    try:
        value = float(text)
    except ValueError:
        return validate_lambda(text, source)
    return validate_lambda(value, source)


def lambda_text(lam: float) -> str:
    """The shortest exact spelling of lambda, for file names and tables: 0 -> "0", 0.5 -> "0.5"."""
    return str(int(lam)) if lam == int(lam) else repr(lam)
