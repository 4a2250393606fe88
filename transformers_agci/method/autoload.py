"""Makes stock transformers honour `"global_context_broadcast_lambda"` in config.json, without an import of ours.

The start-up hook (startup/transformers_agci_startup.py) calls `activate` once transformers.modeling_utils is there.
Then these change, and nothing else:

- `PreTrainedModel.post_init` is wrapped: a supported model whose config carries the key gets AGCI as it is built.
- `PreTrainedConfig.global_context_broadcast_lambda` is a property: where the key is set on the config of a model that
  has no AGCI, the model gets AGCI then. So is `position_balance`, the key of the published BaPA, which turns that on
  and off.
- `PreTrainedModel.__setattr__` looks at `config`: a model that has no AGCI and is given another config, which carries
  the key, gets AGCI then. `PreTrainedConfig.__setattr__` looks at parts (thinker_config, text_config) in the same way.
- `PreTrainedModel.__setstate__` notes copied and unpickled models, which are served in the same ways.
- `PreTrainedConfig.get_config_dict` hands a key of a larger model (Omni, ColPali) down to the part of its vlm.
- `PreTrainedModel.global_context_broadcast_lambda` is a property, and so it is on the classes that wrap models (see
  attach.py): the model's lambda, to be read and set.
"""

import contextlib
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from transformers_agci.errors import InputError, short
from transformers_agci.families import family_of
from transformers_agci.method import attach as attaching
from transformers_agci.method.attach import install_attribute
from transformers_agci.method.handle import Handle, current_handle
from transformers_agci.method.lam import (
    LAMBDA_KEY,
    POSITION_KEY,
    hand_down_key,
    is_served,
    lambda_text,
    served_config,
    settle_key,
    validate_lambda,
)

SWITCH = "TRANSFORMERS_AGCI"  # environment variable

_log = logging.getLogger("transformers_agci")
_warned: set[str] = set()  # model types for which the key was reported as useless
# Supported models, and those that hold one: they may be given the key. Each with the handle that was last seen on it.
_models: weakref.WeakKeyDictionary[Any, weakref.ref[Handle] | None] = weakref.WeakKeyDictionary()
_local = threading.local()


@contextlib.contextmanager
def built_for_another_engine() -> Iterator[None]:
    """Leave alone what this thread builds: models that vLLM makes of transformers' modules, which its plugin serves."""
    _local.for_another_engine = True
    try:
        yield
    finally:
        _local.for_another_engine = False


def switched_off() -> bool:
    """Whether the user wants the config key to do nothing in this process."""
    return os.environ.get(SWITCH) == "0"


def activate() -> None:
    """Let transformers honour the key in this process, unless the switch is off; a second call does nothing.

    >>> import transformers
    >>> activate()
    >>> hasattr(transformers.PreTrainedModel, "global_context_broadcast_lambda")
    True
    """
    if switched_off():
        return
    from transformers import configuration_utils, modeling_utils

    install_attribute()
    if active():  # asked only now: the start-up hook, where it is installed, activates during the import
        return
    models: Any = modeling_utils.PreTrainedModel
    _serve_when_built(models)
    _serve_when_given_a_config(models)
    _note_when_restored(models)
    models._agci_active = True
    configs: Any = configuration_utils.PretrainedConfig
    for key, serve in ((LAMBDA_KEY, _serve_set_lambda), (POSITION_KEY, _serve_position_balance)):
        setattr(configs, key, _key_property(key, serve))
    _serve_when_given_a_part(configs)
    _hand_down_when_read(configs)


def _serve_when_built(models: Any) -> None:
    stock = models.post_init

    @functools.wraps(stock)
    def post_init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        attach_from_config(self)

    models.post_init = post_init


def _serve_when_given_a_config(models: Any) -> None:
    stock = models.__setattr__

    @functools.wraps(stock)
    def set_attribute(self: Any, name: str, value: Any) -> None:
        stock(self, name, value)
        if name == "config" and self in _models:
            attach_from_config(self)
            _serve_position_balance(self, was_replaced=True)

    models.__setattr__ = set_attribute


def _note_when_restored(models: Any) -> None:
    stock = models.__setstate__

    @functools.wraps(stock)
    def set_state(self: Any, state: Any) -> None:
        stock(self, state)
        _note(self)

    models.__setstate__ = set_state


def _serve_when_given_a_part(configs: Any) -> None:
    """In config classes that are there already, too: those of transformers 5 each keep what their base class had."""

    def serving(stock: Any) -> Any:
        @functools.wraps(stock)
        def set_attribute(self: Any, name: str, value: Any) -> None:
            stock(self, name, value)
            if isinstance(value, configs):
                _serve_set_part(self, value)

        return set_attribute

    for each in [configs, *_classes_below(configs)]:
        if "__setattr__" in vars(each):
            each.__setattr__ = serving(vars(each)["__setattr__"])


def _classes_below(top: type) -> set[type]:
    found: set[type] = set()
    waiting: list[type] = [top]
    while waiting:
        below: list[type] = type.__subclasses__(waiting.pop())
        waiting += set(below) - found
        found |= set(below)
    return found


def _hand_down_when_read(configs: Any) -> None:
    stock = configs.get_config_dict.__func__

    @functools.wraps(stock)
    def get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found, rest = stock(cls, *args, **kwargs)
        for key in (LAMBDA_KEY, POSITION_KEY):
            hand_down_key(found, key)
        return found, rest

    configs.get_config_dict = classmethod(get_config_dict)


def active() -> bool:
    """Whether this process's transformers honours the key."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return "_agci_active" in vars(getattr(modeling, "PreTrainedModel", object))


def attach_from_config(model: Any) -> None:
    """Put AGCI, or BaPA, on a model that was just built, if its config carries the key.

    Raises:
        InputError: the key's value is no lambda, or neither true nor false; the message names the file.
    """
    config = getattr(model, "config", None)
    if config is None or _is_part(model) or getattr(_local, "for_another_engine", False):
        return
    for key in (LAMBDA_KEY, POSITION_KEY):
        settle_key(config, key)
    _note(model)
    _serve_position_balance(model)
    _serve_lambda(model)


def _serve_lambda(model: Any) -> None:
    """AGCI where the config carries the key and AGCI is not on yet."""
    if LAMBDA_KEY not in vars(served_config(model.config)):
        return
    handle = current_handle(model)  # asked, so that it learns of the model around its vlm
    if handle is None:
        handle = _attached_from_key(model)
    if handle is not None:
        _models[model] = weakref.ref(handle)


def _serve_set_lambda(model: Any) -> None:
    """The same where the key was set: AGCI that is on reads it by itself.

    Not that of a copy of the vlm, with a config of its own, which was put in its place; it learns of the model here.
    """
    seen = _models.get(model)
    handle = None if seen is None else seen()
    vlm = None if handle is None else handle.vlm()
    if handle is None or not handle.attached or all(part is not vlm for part in (model, *model.children())):
        _serve_lambda(model)


def _serve_set_part(config: Any, part: Any) -> None:
    """The same where a config was given a part that carries a key."""
    for key, serve in ((LAMBDA_KEY, _serve_set_lambda), (POSITION_KEY, _serve_position_balance)):
        if key in vars(part):
            for model in _models_that_show(config, key):
                settle_key(model.config, key)
                serve(model)


def _attached_from_key(model: Any) -> Handle | None:
    """The handle of AGCI, put on now; None where the model is not supported, which is said once."""
    config = model.config
    try:
        family = family_of(model)
    except InputError as error:
        _warn_once(config, error)
        return None
    lam = validate_lambda(vars(served_config(config))[LAMBDA_KEY], f"{LAMBDA_KEY} in {_source(config)}")
    handle = attaching.attach_from_config(model)
    if lam:
        _log.warning(
            "AGCI is on: lambda %s from %s (%s). %s=0 turns it off.",
            lambda_text(lam),
            _source(config),
            family.name,
            SWITCH,
        )
    return handle


def _note(model: Any) -> None:
    """Remember a model that the key would serve if it were set."""
    config = getattr(model, "config", None)
    if hasattr(config, "__dict__") and is_served(getattr(served_config(config), "model_type", None)):
        _models.setdefault(model, None)


def _serve_position_balance(model: Any, was_replaced: bool = False) -> None:
    """BaPA on or off, as the published copy's key `position_balance` has it where the config carries it.

    One that took another's place (`was_replaced`) and has no key is given it while BaPA is on.

    Raises InputError where its value is neither true nor false.
    """
    config = served_config(model.config)
    has_key = POSITION_KEY in vars(config)
    if not is_served(getattr(config, "model_type", None)) or not (has_key or was_replaced):
        return
    from transformers_agci.method.rivals.handle import attach_from_position_key, current_rival

    rival = current_rival(model)
    if not has_key:
        if rival is not None:
            rival.write_key()
        return
    value = vars(config)[POSITION_KEY]
    if not isinstance(value, bool):
        raise InputError(f"{POSITION_KEY} in {_source(config)} must be true or false, but is {short(value, 60)}.")
    if rival is not None and rival.method == "bapa":
        if bool(rival.strength) is not value:
            rival.strength = float(value)
    elif rival is not None and value:
        _log.warning("%s in %s does nothing: %r is attached to this model.", POSITION_KEY, _source(config), rival)
    elif value:
        attach_from_position_key(model)
        _log.warning("BaPA is on: %s in %s. %s=0 turns it off.", POSITION_KEY, _source(config), SWITCH)


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


def _key_property(key: str, serve: Callable[[Any], None]) -> property:
    """A key as an attribute of configs; where it is set, `serve` is called with every model that shows the config."""

    def holders(config: Any) -> list[Any]:
        found = [holder for holder in (config, served_config(config)) if key in vars(holder)]
        if not found:  # as for any other key
            raise AttributeError(f"{type(config).__name__!r} object has no attribute {key!r}")
        return found

    def get(config: Any) -> Any:
        return vars(holders(config)[0])[key]

    def store(config: Any, value: Any) -> None:
        vars(served_config(config))[key] = value
        for model in _models_that_show(config, key):
            serve(model)

    def delete(config: Any) -> None:
        for holder in holders(config):
            vars(holder).pop(key, None)

    return property(get, store, delete)


def _models_that_show(config: Any, key: str) -> Iterator[Any]:
    """The models of this config, or of one around it, to whose top the key goes up."""
    served = served_config(config)
    for model in list(_models):
        shown = served_config(model.config)
        if getattr(shown, "text_config", None) is config:
            settle_key(model.config, key)
            yield model
        elif shown is served:
            yield model
