"""Graphs that torch.compile made of a model before AGCI came.

They do not look at a module's hooks again, and torch uses them for any model of the same class: without a word, AGCI
would do nothing on it.
"""

import logging
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from transformers_agci.families import decoder_of

_log = logging.getLogger("transformers_agci")


def forget_graphs_of(vlm: nn.Module) -> bool:
    """Have torch.compile trace again where it has graphs of this class of model or decoder; returns whether it had any.

    torch can only forget all graphs of the process: others are retraced at their next call, with the same results.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    names = {f"{type(module).__module__}.{type(module).__qualname__}" for module in (vlm, decoder_of(vlm))}
    if dynamo is None or not any(name in guards for guards in _guards_of_all_graphs() for name in names):
        return False
    dynamo.reset()
    _log.warning(
        "AGCI comes to a model class that torch.compile has graphs of: torch._dynamo.reset() was called, and "
        "compiled models are retraced at their next call. Attach first to spare this."
    )
    return True


def _guards_of_all_graphs() -> Iterator[str]:
    """For each graph of this process what it demands of its inputs, among it the classes of the modules."""
    from torch._dynamo.convert_frame import input_codes
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    for reference in list(input_codes.seen):
        code = reference()
        if code is not None:
            yield from (str(entry.guard_manager) for entry in _debug_get_cache_entry_list(code))
