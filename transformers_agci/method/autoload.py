"""Makes stock transformers honour `"global_context_broadcast_lambda"` in config.json, without an import of ours.

The start-up hook (startup/transformers_agci_startup.py) calls `activate` once transformers.modeling_utils is there. Two
things are then changed in transformers, and nothing else:

- `PreTrainedModel.post_init` is wrapped: a supported model whose config carries the key gets AGCI as it is built.
- `PreTrainedModel.global_context_broadcast_lambda` is a property: the model's lambda, to be read and set.
"""

import functools
import logging
import os
import sys
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families import family_of, find_vlm
from transformers_agci.method.hooks import current_handle, serve_key
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text, validate_lambda

SWITCH = "TRANSFORMERS_AGCI"  # environment variable; "0" is off

_log = logging.getLogger("transformers_agci")
_warned: set[str] = set()  # model types for which the key was reported as useless


def activate() -> None:
    """Wrap `PreTrainedModel` of this process, unless the switch is off; a second call does nothing.

    >>> import transformers
    >>> activate()
    >>> hasattr(transformers.PreTrainedModel, "global_context_broadcast_lambda")
    True
    """
    if os.environ.get(SWITCH) == "0":
        return
    from transformers.modeling_utils import PreTrainedModel

    if active():  # asked only now: the start-up hook, where it is installed, activates during the import
        return
    base: Any = PreTrainedModel
    stock = base.post_init

    @functools.wraps(stock)
    def post_init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        honour_key(self)

    base.post_init = post_init
    setattr(base, LAMBDA_KEY, property(_get_lambda, _set_lambda))


def active() -> bool:
    """Whether this process's transformers honours the key."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return LAMBDA_KEY in vars(getattr(modeling, "PreTrainedModel", object))


def honour_key(model: Any) -> None:
    """Put AGCI on a model that was just built, if its config carries the key.

    Raises:
        InputError: the key's value is no lambda; the message names the file.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, LAMBDA_KEY) or current_handle(model) is not None or _is_part(model):
        return
    try:
        family = family_of(model)
    except InputError as error:
        _warn_once(config, error)
        return
    lam = validate_lambda(getattr(config, LAMBDA_KEY), f"{LAMBDA_KEY} in {_source(config)}")
    serve_key(find_vlm(model))
    if lam:
        _log.warning(
            "AGCI is on: lambda %s from %s (%s). %s=0 turns it off.",
            lambda_text(lam),
            _source(config),
            family.name,
            SWITCH,
        )


def _is_part(model: Any) -> bool:
    """Whether this is the text or vision part of a larger model: the key is looked for in the whole one.

    Configs of older checkpoints are flat, and some versions of transformers copy what they do not know into the text
    part.
    """
    return bool(getattr(type(model.config), "base_config_key", "")) and not model.can_generate()


def _warn_once(config: Any, error: InputError) -> None:
    if config.model_type not in _warned:
        _warned.add(config.model_type)
        _log.warning("%s in %s does nothing: %s", LAMBDA_KEY, _source(config), error)


def _source(config: Any) -> str:
    """The file that the config was read from, as far as it tells."""
    return f"config.json of {config._name_or_path}" if getattr(config, "_name_or_path", "") else "the model's config"


def _get_lambda(model: Any) -> float:
    """Lambda of a supported model, 0 where its config has none; AttributeError for any other model."""
    try:
        owner = find_vlm(model)
    except InputError as error:
        raise AttributeError(str(error)) from error
    return validate_lambda(getattr(owner.config, LAMBDA_KEY, 0.0), f"{LAMBDA_KEY} in {_source(owner.config)}")


def _set_lambda(model: Any, value: float) -> None:
    """Turn AGCI on at this lambda (0: stock, bit for bit).

    A PEFT or DDP wrapper hands reading on, not setting: set it on the model inside (`get_base_model()`, `.module`).

    Raises InputError (a ValueError) for a value that is no lambda and for a model that is not supported.
    """
    lam = validate_lambda(value, f"model.{LAMBDA_KEY}")
    serve_key(model).lam = lam
