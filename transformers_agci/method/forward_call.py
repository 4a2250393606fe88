"""What a module was called with: arguments by position or by name, read and replaced."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from transformers_agci.families import ForwardCall
from transformers_agci.families.declaration import PIXELS

_EMBEDS = "inputs_embeds"


def forward_call(vlm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ForwardCall:
    """The arguments of the vlm's forward that families look at, given by position or by name."""
    taken = _parameters(type(vlm).forward)
    given = {**dict(zip(taken, args, strict=False)), **kwargs}
    # Fuyu's forward of transformers 5.6 takes pixels under another name and lets these go; a wrapper's names nothing
    named = (name for name in PIXELS if name in taken or "input_ids" not in taken)
    pixels = next((given[name] for name in named if _holds_something(given.get(name))), None)
    outputs = given.get("mm_encoder_outputs")
    encoded = outputs.get("image") if isinstance(outputs, Mapping) else None
    names = ("input_ids", _EMBEDS, "attention_mask", "image_grid_thw", "image_sizes")
    return ForwardCall(
        **{name: on_host(given.get(name)) for name in names},
        pixel_values=pixels,
        encoded=encoded,
        cache=cache_of_call(given),
        arguments=given,
    )


# What transformers calls the cache of keys and values: until 5.23, and from 5.24 on.
CACHES = ("past_key_values", "cache")


def cache_of_call(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a vlm, decoder or attention layer, whichever name it came under; or None."""
    return next((arguments[name] for name in CACHES if arguments.get(name) is not None), None)


def cache_of_output(output: Any) -> Any:
    """The cache in a model's output, or None."""
    fields = getattr(output, "__dict__", {})  # 5.24 warns of each look at the old name, which is a property there
    return cache_of_call(fields)


def cache_name(module: nn.Module) -> str:
    """The keyword by which a model's forward takes its cache; a wrapper hands its own on to the module inside."""
    for part in module.modules():
        parameters = _parameters(type(part).forward)
        found = next((name for name in CACHES if name in parameters), None)
        if found is not None:
            return found
    return CACHES[0]


def with_cache(module: nn.Module, arguments: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The same arguments of a module's forward with another cache."""
    others = {name: value for name, value in arguments.items() if name not in CACHES}
    return {**others, cache_name(module): cache}


_ON_HOST = "_agci_on_host"  # attribute of a tensor on a device


def keep_on_host(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Remember on a tensor of a device where its values are on the host, whence it came."""
    setattr(tensor, _ON_HOST, values)


def on_host(value: Any) -> Any:
    """The tensor on the host that this one is a copy of, else the value itself: the same numbers, without a wait.

    Where images stand in a prompt is read off token ids; on a GPU each look at them waits for all work before it.
    """
    return getattr(value, _ON_HOST, value)


def is_decoding_step(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a vlm or decoder is called for one token and without images: AGCI has nothing to look for."""
    given = kwargs.get("input_ids")
    if given is None:
        given = args[0] if args and args[0] is not None else kwargs.get(_EMBEDS)
    if not isinstance(given, torch.Tensor) or given.ndim < 2 or given.shape[1] != 1 or len(args) > 1:
        return False
    return not kwargs.get("mm_encoder_outputs") and all(kwargs.get(name) is None for name in PIXELS)


def embeds_of(decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """inputs_embeds [B, S, D] of a call of the decoder; None where it was given token ids instead."""
    if _EMBEDS in kwargs:
        return _tensor(kwargs[_EMBEDS])
    place = _embeds_place(decoder)
    return _tensor(args[place]) if place is not None and place < len(args) else None


def with_embeds(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], embeds: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call of the decoder with other inputs_embeds."""
    if _EMBEDS in kwargs:
        return args, {**kwargs, _EMBEDS: embeds}
    place = _embeds_place(decoder)
    assert place is not None
    return (*args[:place], embeds, *args[place + 1 :]), dict(kwargs)


def _tensor(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) else None


def _holds_something(value: Any) -> bool:
    return value is not None and len(value) > 0


def _embeds_place(decoder: nn.Module) -> int | None:
    """Where inputs_embeds stands among the positional arguments; a wrapper hands its own on to the module inside."""
    for module in decoder.modules():
        parameters = _parameters(type(module).forward)
        if _EMBEDS in parameters:
            return parameters.index(_EMBEDS)
    return None


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]  # without self
