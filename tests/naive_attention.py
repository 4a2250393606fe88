"""Naive attention for the tests of rivals: score by score, from queries and keys as recorded, in float64.

Every attention layer's queries, keys, values and masks are recorded as its backend is given them; `naive` computes what
one query should get when its scores are changed first. No code under test takes part.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_families import TINY

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method.rivals import attention

MARKS = list(range(40))  # a random model would generate them, and stock would look for their images
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "suppress_tokens": MARKS}
NAMES = ("qwen2_vl", "vipllava")  # M-RoPE and one axis
SCORED: dict[str, dict[str, Any]] = {
    "adaptvis": {"strength": 1.0},
    "pai": {"strength": 0.5, "first_layer": 1, "gamma": 1.0},
    "uac": {"strength": 1.0},
}
BACKENDS = ("eager", "sdpa")


def built(name: str, backend: str = "eager") -> Any:
    model = TINY[name].build()
    decoder_of(find_vlm(model)).config._attn_implementation = backend
    return model


class Layers:
    """Records what each attention layer of the decoder was given and gave back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        stock = attention.attend

        def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
            output = stock(module, query, key, value, mask, **more)
            given = {
                "q": query,
                "k": key,
                "v": value,
                "mask": mask,
                "scaling": more.get("scaling"),
                "bias": more.get("position_bias"),
            }
            self.calls.append({**given, "layer": module.layer_idx, "out": output[0].clone()})
            return output

        monkeypatch.setattr(attention, "attend", attend)
        for backend in attention.BACKENDS.values():
            monkeypatch.setitem(transformers.AttentionInterface._global_mapping, backend, attend)


def naive(call: dict[str, Any], row: int, head: int, column: int, change: Callable[[list[float]], list[float]]) -> Any:
    """One query's output, its scores (before the mask) changed by `change`; -inf or the mask added behind."""
    query = call["q"][row, head, column].double()
    group = call["q"].shape[1] // call["k"].shape[1]
    keys, values = (call[name][row, head // group].double() for name in ("k", "v"))
    scaling = call["scaling"] or call["q"].shape[-1] ** -0.5
    scores = [float(query @ key) * scaling for key in keys]
    if call["bias"] is not None:
        added = call["bias"][row if len(call["bias"]) > 1 else 0, head, column].tolist()
        scores = [score + bias for score, bias in zip(scores, added, strict=True)]
    scores = change(scores)
    past = len(keys) - call["q"].shape[2]
    mask = call["mask"]
    for number in range(len(scores)):
        if mask is None:
            hidden = number > past + column
        else:
            cell = mask[row if mask.shape[0] > 1 else 0, 0, column, number]
            hidden = not bool(cell) if mask.dtype == torch.bool else float(cell) < -1e30
        if hidden:
            scores[number] = -math.inf
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    return sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True))


def images_by_row(batch: Any, rows: int) -> list[set[int]]:
    return [{place for r, places in batch.images if r == row for place in places} for row in range(rows)]
