"""The settings that something on disk was made with, compared with those of now."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from transformers_agci.errors import InputError, short

NOT_SET = "not set"
MOST = 10  # differences that a message names
LONGEST = 200  # characters of a value that a message quotes


def as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the form that a JSON file gives back: tuples are lists, keys are strings."""
    stored: dict[str, Any] = json.loads(json.dumps(settings))
    return stored


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the settings on disk and those of now, each as words.

    >>> differences({"lambda": 0, "data": {"seed": 1}}, {"lambda": 0.5, "data": {"seed": 1}})
    ['lambda is 0 there and 0.5 now']
    """
    before, now = dict(_flat(there)), dict(_flat(as_stored(here)))
    return [
        f"{key} is {short(before.get(key, NOT_SET), LONGEST)} there and {short(now.get(key, NOT_SET), LONGEST)} now"
        for key in sorted(before | now)
        if before.get(key, NOT_SET) != now.get(key, NOT_SET)
    ]


def check_same_settings(what: str, there: Mapping[str, Any], here: Mapping[str, Any], remedy: str) -> None:
    """InputError naming every setting that differs: "`what` with other settings: ...; `remedy`."."""
    differ = differences(there, here)
    if differ:
        more = [f"and {len(differ) - MOST} more"] if len(differ) > MOST else []
        raise InputError(f"{what} with other settings: {'; '.join([*differ[:MOST], *more])}. {remedy}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
