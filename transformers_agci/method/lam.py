"""Lambda, the strength of AGCI: its name in config.json, its range, its spelling in file names."""

import logging
import math
from numbers import Real
from typing import Any

from transformers_agci.errors import InputError, short

LAMBDA_KEY = "global_context_broadcast_lambda"

_log = logging.getLogger("transformers_agci")


def validate_lambda(value: Any, source: str) -> float:
    """Return `value` as a float if it is a lambda: a finite number >= 0 (0 is the unmodified model).

    `source` says where the value came from ("`global_context_lambda`", "config.json of ..."); it is part of the
    message. Text is refused even where it spells a number: a command line converts it with `parse_lambda`.

    >>> validate_lambda(0.5, "lam")
    0.5
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not _finite(value) or value < 0:
        raise InputError(
            f"lambda must be a finite number >= 0 (0 is the unmodified model), but {source} is {short(value, 60)}."
        )
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


def config_lambda(config: Any) -> float:
    """Lambda in the config of a model, 0 where it has none; InputError where the value is no lambda."""
    return validate_lambda(vars(config).get(LAMBDA_KEY, 0.0), f"{LAMBDA_KEY} in the model's config")


def settle_key(config: Any) -> None:
    """Leave the key at the top level of a model's config only, where it can be read, set and saved.

    A config has parts (text_config, vision_config). Where a checkpoint's config.json is flat, transformers 4.57 copies
    keys it does not know into the text part, and reads them there. Two values may also have been written by hand:

        top 0, text_config 0.2      0: the top level wins, and a warning names both
        text_config 0.2 alone       0.2
        vision_config 0.2 alone     a warning: the key does nothing there
    """
    for name, part in list(vars(config).items()):
        if not hasattr(part, "model_type") or LAMBDA_KEY not in vars(part):
            continue
        nested = vars(part).pop(LAMBDA_KEY)
        top = vars(config).get(LAMBDA_KEY, _ABSENT)
        if name != "text_config":
            _log.warning("%s = %r in %s does nothing: it belongs at the top of config.json.", LAMBDA_KEY, nested, name)
        elif top is _ABSENT:
            vars(config)[LAMBDA_KEY] = nested
        elif top != nested:
            _log.warning(
                "%s is %r at the top of config.json and %r in %s: the top level wins.", LAMBDA_KEY, top, nested, name
            )


_ABSENT = object()


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
