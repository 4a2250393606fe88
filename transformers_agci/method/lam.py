"""Lambda, the strength of AGCI: its name in config.json, its range, its spelling in file names.

>>> LAMBDA_KEY
'global_context_broadcast_lambda'
"""

import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from transformers_agci.errors import InputError, short
from transformers_agci.families import SUPPORTED_FAMILIES, todays_model_type

LAMBDA_KEY = "global_context_broadcast_lambda"
"""The key of config.json that holds lambda; a model attribute of the same name is a view of it."""

POSITION_KEY = "position_balance"  # the published BaPA's key: true turns it on; it stands where lambda's does

MOST_DIGITS = 1e16  # beyond it 1e+16 is shorter, and no float is a half any more

_log = logging.getLogger("transformers_agci")


def validate_lambda(value: Any, source: str) -> float:
    """Return `value` as a float if it is a lambda: a finite number >= 0 (0 is the unmodified model).

    `source` says where the value came from ("`global_context_lambda`", "config.json of ..."); it is part of the
    message. Text is refused even where it spells a number: a command line converts it with `parse_lambda`.

    >>> validate_lambda(0.5, "lam")
    0.5
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not is_finite(value) or value < 0:
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
    return str(int(lam)) if float(lam).is_integer() and abs(lam) < MOST_DIGITS else repr(lam)


def config_lambda(config: Any) -> float:
    """Lambda in the config of a model, 0 where it has none; InputError where the value is no lambda."""
    return validate_lambda(vars(config).get(LAMBDA_KEY, 0.0), f"{LAMBDA_KEY} in the model's config")


def served_config(config: Any) -> Any:
    """The config of the vlm within a model's config: the config itself, or the part of a larger model's.

    Qwen2.5-Omni has its vlm's in thinker_config, ColPali in vlm_config; which part it is its model_type says. A config
    of no supported family is returned as it is.
    """
    name = served_name(config)
    return config if name is None else getattr(config, name)


def served_name(config: Any) -> str | None:
    """The name of the part that `served_config` returns; None where that is the config itself."""
    if not hasattr(config, "__dict__") or is_served(getattr(config, "model_type", None)):
        return None
    names = [name for name, part in vars(config).items() if is_served(getattr(part, "model_type", None))]
    return names[0] if len(names) == 1 else None


def served_part(config: Mapping[str, Any]) -> str | None:
    """The same for a config.json that was read: the name of the part that is the vlm's; None where there is none."""
    if is_served(config.get("model_type")):
        return None
    names = [name for name, part in config.items() if isinstance(part, dict) and is_served(part.get("model_type"))]
    return names[0] if len(names) == 1 else None


def key_of(config: Mapping[str, Any]) -> Any:
    """The key's value in a config.json that was read, None where it has none; the top level wins."""
    places = ([config], [config.get(served_part(config) or "")], [config.get("text_config")])
    found = [part[LAMBDA_KEY] for (part,) in places if isinstance(part, Mapping) and LAMBDA_KEY in part]
    return found[0] if found else None


def is_served(model_type: object) -> bool:
    """Whether a config of this model_type, as any version of transformers writes it, is that of a supported vlm."""
    return isinstance(model_type, str) and todays_model_type(model_type) in SUPPORTED_FAMILIES


def hand_down_key(config: dict[str, Any], key: str = LAMBDA_KEY) -> None:
    """Move a key of a config.json that was read to where it is read, set and saved: the top of the vlm's config.

    The key of a larger model goes down to the part that is the vlm's: a thinker that is loaded alone from an Omni
    checkpoint is given its own part only. A key in text_config goes up, lest the decoder, which is a model of its own,
    be said not to be supported. The top of the file wins, and a conflict is warned of.
    """
    name = served_part(config)
    if name is not None and key in config:
        _warn_of_two(key, config[key], config[name].get(key, config[key]), name)
        config[name] = config[name] | {key: config.pop(key)}
    served = config if name is None else config[name]
    text = served.get("text_config")
    if is_served(served.get("model_type")) and isinstance(text, dict) and key in text:
        nested = text[key]
        served["text_config"] = {name: value for name, value in text.items() if name != key}
        _warn_of_two(key, served.setdefault(key, nested), nested, "text_config")


def settle_key(config: Any, key: str = LAMBDA_KEY) -> None:
    """Leave a key in one place of a model's config, that of the vlm (`served_config`).

    A config has parts (text_config, vision_config). Where a checkpoint's config.json is flat, transformers 4.57 copies
    keys it does not know into the text part, and reads them there. Two values may also have been written by hand:

        top 0, text_config 0.2      0: the top level wins, and a warning names both
        text_config 0.2 alone       0.2
        vision_config 0.2 alone     a warning: the key does nothing there
        Omni: top 0.2               0.2 in thinker_config, the vlm's; a value there (0.5) is one of its own
    """
    served = served_config(config)
    if served is not config and key in vars(config):
        top = vars(config).pop(key)
        _warn_of_two(key, top, vars(served).get(key, top), "the part of its vision-language model")
        vars(served)[key] = top
    for name, part in _parts(config):
        if part is served or key not in vars(part):
            continue
        nested = vars(part).pop(key)
        top = vars(served).get(key, _ABSENT)
        if name != "text_config":
            _log.warning("%s = %r in %s does nothing: it belongs at the top of config.json.", key, nested, name)
        elif top is _ABSENT:
            vars(served)[key] = nested
        else:
            _warn_of_two(key, top, nested, name)


def _parts(config: Any) -> list[tuple[str, Any]]:
    """(name, part) of a config and of the vlm's config within it."""
    served = served_config(config)
    holders = [config] if served is config else [config, served]
    return [(name, part) for one in holders for name, part in vars(one).items() if hasattr(part, "model_type")]


def _warn_of_two(key: str, top: Any, nested: Any, name: str) -> None:
    if top != nested:
        _log.warning("%s is %r at the top of config.json and %r in %s: the top level wins.", key, top, nested, name)


_ABSENT = object()


def is_finite(value: Real) -> bool:
    """Whether a number can be a float, and is neither infinite nor NaN."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
