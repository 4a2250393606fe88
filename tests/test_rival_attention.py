"""CCA's mask, AdaptVis, PAI and UAC against naive attention: what every layer gives back, score by score.

What should come out is computed from the formula in each method's docstring (naive_attention.py).
"""

import copy
import math
from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE
from naive_attention import BACKENDS, GREEDY, NAMES, SCORED, Layers, built, images_by_row, naive
from tiny_families import TEXT, TINY, make_batch, wide_image

from transformers_agci import InputError, attach
from transformers_agci.method.rivals.cca import rings
from transformers_agci.method.rivals.declaration import Grid

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

RICH = [[TEXT, "plain", TEXT, "tiled", TEXT], [TEXT], ["plain", "tiled", TEXT], [TEXT, "tiled", TEXT, TEXT]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_pai_against_naive_attention(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """s + alpha |s| on image keys, last query only, from layer 1 on, prefill and decode steps; layer 0 untouched."""
    model, batch = built(name, backend), make_batch(TINY[name], RICH)
    layers = Layers(monkeypatch)
    handle = attach(model, method="pai", **SCORED["pai"])
    model.generate(**batch.inputs, **GREEDY)
    assert handle.injections == len(batch.images)
    columns = images_by_row(batch, len(RICH))
    assert len(layers.calls) == 3 * 2
    for call in layers.calls:
        length = call["q"].shape[2]
        for row in range(len(RICH)):
            for column in {0, length // 2, length - 1}:
                acts = call["layer"] >= 1 and column == length - 1

                def raised(scores: list[float], row: int = row, acts: bool = acts) -> list[float]:
                    return [s + 0.5 * abs(s) * (acts and key in columns[row]) for key, s in enumerate(scores)]

                if not batch.inputs["attention_mask"][row, column] and length > 1:
                    continue
                wanted = naive(call, row, 1, column, raised)
                torch.testing.assert_close(call["out"][row, column, 1].double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_adaptvis_against_naive_attention(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight follows the confidence of stock's first token, row by row; decode steps are stock's."""
    model, batch = built("vipllava", backend), make_batch(TINY["vipllava"], RICH)
    confidence = model(**batch.inputs).logits[:, -1].softmax(-1).amax(-1)
    threshold = float(confidence.sort().values[1:3].mean())  # two prompts below, two above
    layers = Layers(monkeypatch)
    attach(model, method="adaptvis", strength=1, w_low=0.5, w_high=1.5, threshold=threshold)
    model.generate(**batch.inputs, **GREEDY)
    columns = images_by_row(batch, len(RICH))
    first, second, *steps = (layers.calls[i : i + 2] for i in range(0, len(layers.calls), 2))
    assert len(steps) == 2
    for acts, calls in ((False, first), (True, second), (False, steps[0]), (False, steps[1])):
        for call in calls:
            for row in range(len(RICH)):
                weight = (0.5 if confidence[row] < threshold else 1.5) if acts else 1.0

                def scaled(scores: list[float], row: int = row, weight: float = weight) -> list[float]:
                    return [s * weight if key in columns[row] else s for key, s in enumerate(scores)]

                wanted = naive(call, row, 2, call["q"].shape[2] - 1, scaled)
                torch.testing.assert_close(call["out"][row, -1, 2].double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_uac_against_naive_attention(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blank image's attention b, from a pass of stock on zero pixels; log(mean b / b) for every text query."""
    model, batch = built("vipllava", backend), make_batch(TINY["vipllava"], RICH)
    layers = Layers(monkeypatch)
    attach(model, method="uac", strength=1)
    model(**batch.inputs)
    blank, shown = layers.calls[:2], layers.calls[2:]
    assert len(shown) == 2
    for before, call in zip(blank, shown, strict=True):
        for row, column in [(0, -1), (2, -1), (3, -1), (3, -3)]:
            mean: dict[int, float] = {}
            places = [p for r, p in batch.images if r == row]
            scores = before["q"][row, :, -1:].double() @ before["k"][row].double().repeat_interleave(2, 0).mT
            hidden = torch.tensor([[m == 0 for m in batch.inputs["attention_mask"][row]]])
            weights = (scores[:, 0] * before["scaling"]).masked_fill(hidden, -math.inf).softmax(-1).mean(0)
            for image in places:
                b = weights[image] / weights[image].sum()
                mean |= dict(zip(image, (b.mean() / b).log().tolist(), strict=True))

            def calibrated(scores: list[float], mean: dict[int, float] = mean) -> list[float]:
                return [s + mean.get(key, 0.0) for key, s in enumerate(scores)]

            length = call["q"].shape[2]
            wanted = naive(call, row, 0, length + column, calibrated)
            torch.testing.assert_close(call["out"][row, column, 0].double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_scores_against_naive_attention_on_every_family(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last query of every prompt of a padded batch, in every attention layer that can be recorded."""
    family = TINY[name]
    model, batch = family.build(), make_batch(family, RICH)
    confidence = model(**batch.inputs).logits[:, -1].softmax(-1).amax(-1)
    threshold = float(confidence.sort().values[1:3].mean())
    options = {"pai": {"first_layer": 0}, "adaptvis": {"threshold": threshold}, "uac": {}}[method]
    try:
        attach(model, method=method, **{**SCORED[method], **options})
        layers = Layers(monkeypatch)
        model(**batch.inputs)
    except InputError as error:
        pytest.skip(str(error))
    count = len(layers.calls) // (1 if method == "pai" else 2)
    assert count >= 1
    before, shown = layers.calls[:count], layers.calls[-count:]
    columns = images_by_row(batch, len(RICH))
    for stock, call in zip(before, shown, strict=True):
        length = call["q"].shape[2]
        for row in range(len(RICH)):
            weight = 0.5 if confidence[row] < threshold else 1.5
            evened: dict[int, float] = {}
            for image in (places for r, places in batch.images if r == row and method == "uac"):
                b = torch.stack([blank_attention(stock, row, head, image) for head in range(stock["q"].shape[1])])
                b = (b.mean(0) / b.mean(0).sum()).clamp_min(1e-6)  # below, a logarithm would be noise
                evened |= dict(zip(image, (b.mean() / b).log().tolist(), strict=True))

            def changed(scores: list[float], row: int = row, w: float = weight, e: Any = evened) -> list[float]:
                ways = {"pai": lambda s: s + 0.5 * abs(s), "adaptvis": lambda s: s * w}
                return [
                    s if key not in columns[row] else s + e[key] if method == "uac" else ways[method](s)
                    for key, s in enumerate(scores)
                ]

            wanted = naive(call, row, 1, length - 1, changed)
            torch.testing.assert_close(call["out"][row, -1, 1].double(), wanted, atol=2e-4, rtol=1e-3)


def blank_attention(call: dict[str, Any], row: int, head: int, image: list[int]) -> Any:
    """The share of each of the image's keys in what the last query of a row attends to, one head."""
    length = call["q"].shape[2]
    keys = call["k"].shape[2]
    unit = {**call, "v": torch.eye(keys).expand(call["v"].shape[0], call["v"].shape[1], -1, -1)}
    return naive(unit, row, head, length - 1, lambda scores: scores)[image]


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_cca_mask_against_naive_attention(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A border token sees the border only, later tokens too; a middle token sees all; text is causal."""
    model = built("qwen2_vl", backend)
    inputs, places = wide_image()
    layers = Layers(monkeypatch)
    attach(model, method="cca")
    model.generate(**inputs, **GREEDY)
    ring = dict(zip(places, rings(Grid(3, 4)), strict=True))
    length = inputs["input_ids"].shape[1]
    for call in layers.calls[:2]:
        for column in (2, places[0], places[5], places[11], length - 1):

            def seen(scores: list[float], column: int = column) -> list[float]:
                return [
                    s if (ring[key] <= ring[column] if {key, column} <= set(ring) else key <= column) else -math.inf
                    for key, s in enumerate(scores)
                ]

            open_mask = {**call, "mask": torch.ones(1, 1, length, length, dtype=torch.bool)}
            wanted = naive(open_mask, 0, 1, column, seen)
            torch.testing.assert_close(call["out"][0, column, 1].double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_adaptvis_weighs_a_second_turn_by_its_own_confidence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token of the turn looks at the image in the cache with the weight of what stock would say."""
    model, batch = built(name), make_batch(TINY[name], [[TEXT, "plain", TEXT]])
    handle = attach(model, method="adaptvis", strength=1, threshold=0)  # never below: w_high
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    model(**batch.inputs, **{CACHE: cache})
    past, more = cache.get_seq_length(), torch.tensor([[50, 51, 52]])
    turn = {"input_ids": more, "attention_mask": torch.ones(1, past + 3, dtype=torch.long)}
    if name == "qwen2_vl":
        turn["position_ids"] = (torch.arange(past, past + 3) + int(model.model.rope_deltas[0])).expand(3, 1, -1)
    with handle.suspended():
        stock = model(**turn, **{CACHE: copy.deepcopy(cache)}).logits[0, -1]
    columns = images_by_row(batch, 1)[0]
    for threshold, weight in ((0.0, 1.5), (1.0, 0.5)):
        handle.detach()
        handle = attach(model, method="adaptvis", strength=1, threshold=threshold)
        layers = Layers(monkeypatch)
        answer = model(**turn, **{CACHE: copy.deepcopy(cache)}).logits[0, -1]
        first, second = layers.calls[:2], layers.calls[2:]
        assert len(second) == 2
        for factor, calls in ((1.0, first), (weight, second)):
            for call in calls:

                def scaled(scores: list[float], factor: float = factor) -> list[float]:
                    return [s * factor if key in columns else s for key, s in enumerate(scores)]

                wanted = naive(call, 0, 2, 2, scaled)
                torch.testing.assert_close(call["out"][0, -1, 2].double(), wanted, atol=2e-5, rtol=1e-4)
        assert (answer - stock).abs().max() > 1e-7
