"""The decoder's last MLP computes the positions whose logits are asked for, and no others.

What a layer makes of a position reaches the logits of that position, and of others only through the layers above it.
Above the last MLP there are a norm and the output matrix, which take each position by itself. A call that asks for the
logits of the last n positions (`logits_to_keep`, as `generate` does) therefore needs the last MLP there only; its keys
and values come from before it. Of Qwen2.5-VL-7B's 28 layers that is 3 % of the decoder's arithmetic, of the embedded
model's four 15 %.

    positions of a prompt    0 1 2 ... 923 924        logits_to_keep = 1
    layers 0 to 26           all
    layer 27: attention      all
    layer 27: MLP            924; the others get zeros

A call that wants all logits, or the hidden states, computes all positions.
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType, MethodType
from typing import Any

import torch
from torch import nn

from transformers_agci.families import decoder_of, find_vlm

ASKED = "logits_to_keep"
_STATE = "_agci_positions"


class _Positions:
    """What the model's hooks leave for the MLP, per thread: how many of the last positions the call at hand asks for.

    It counts only within that call, whose frame is kept: after a Ctrl-C torch does not run the hook behind it. A copy
    of a model has its own.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __reduce__(self) -> Any:
        return _Positions, ()

    def begin(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward call of the model."""
        asked = kwargs.get(ASKED)
        some = type(asked) is int and asked > 0
        some = some and not kwargs.get("output_hidden_states") and not _asks_for_hidden_states(model.config)
        self._of_thread.call = (sys._getframe(1), asked) if some else None

    def end(self, *_: Any) -> None:
        """After it."""
        self._of_thread.call = None

    @property
    def wanted(self) -> int | None:
        """Of the call at hand; None: all."""
        call = getattr(self._of_thread, "call", None)
        if call is None:
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not call[0]:
            frame = frame.f_back
        return None if frame is None else call[1]


def _asks_for_hidden_states(config: Any) -> bool:
    """Whether a config or one within it does: versions of transformers differ in which of them they read."""
    parts = (part for part in vars(config).values() if hasattr(part, "get_text_config"))
    return bool(getattr(config, "output_hidden_states", False)) or any(map(_asks_for_hidden_states, parts))


def last_mlp(model: nn.Module) -> Any:
    """The MLP of the decoder's last layer, or None."""
    layers = getattr(decoder_of(find_vlm(model)), "layers", None)
    return getattr(layers[-1], "mlp", None) if layers else None


def narrow(model: nn.Module, mlp: Any) -> Callable[[], None]:
    """Put it on this MLP, the last of the model's decoder; returns what takes it off."""
    positions = vars(mlp)[_STATE] = _Positions()
    before = model.register_forward_pre_hook(positions.begin, with_kwargs=True)
    after = model.register_forward_hook(positions.end, always_call=True)
    vars(mlp)["forward"] = MethodType(_forward, mlp)

    def remove() -> None:
        before.remove()
        after.remove()
        del vars(mlp)["forward"], vars(mlp)[_STATE]

    return remove


def is_narrowed(model: nn.Module) -> bool:
    """Whether a model's last MLP computes what is asked for only."""
    return _STATE in vars(last_mlp(model) or nn.Module())


def _forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:  # [B, S, D] -> [B, S, D]
    stock, wanted = type(mlp).forward, vars(mlp)[_STATE].wanted
    if wanted is None or x.dim() != 3 or wanted >= x.shape[1]:
        return stock(mlp, x)
    made = stock(mlp, x[:, -wanted:])
    return nn.functional.pad(made, (0, 0, x.shape[1] - wanted, 0))
