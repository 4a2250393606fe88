"""CCA's mask, AdaptVis, PAI and UAC against naive attention: score by score, from queries and keys as recorded.

The queries, keys, values and masks that every layer gives to its backend are recorded; what should come out is computed
here from the formula in each method's docstring, in float64, without any of the code under test.
"""

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from tiny_families import TEXT, TINY, make_batch, wide_image

from transformers_agci import InputError, attach
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method.rivals import RIVALS, attention
from transformers_agci.method.rivals.cca import rings
from transformers_agci.method.rivals.declaration import Grid

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

RICH = [[TEXT, "plain", TEXT, "tiled", TEXT], [TEXT], ["plain", "tiled", TEXT], [TEXT, "tiled", TEXT, TEXT]]
MARKS = list(range(40))
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "suppress_tokens": MARKS}
NAMES = ("qwen2_vl", "vipllava")
SCORED: dict[str, dict[str, Any]] = {
    "adaptvis": {"strength": 1.0},
    "pai": {"strength": 0.5, "first_layer": 1, "gamma": 1.0},
    "uac": {"strength": 1.0},
}
BACKENDS = ("eager", "sdpa")
BLANKS_ALIKE = ("lfm3_vl",)  # its tiny model attends evenly to a blank image: UAC has nothing to even out


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


@pytest.mark.parametrize("method", ["cca", *SCORED])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_padded_batch_is_its_rows(method: str, backend: str) -> None:
    """One image per prompt: every row's next-token logits equal those of the prompt alone."""
    prompts = [[TEXT, "plain", TEXT], [TEXT], [TEXT, TEXT, "plain", TEXT]]
    model, batch = built("vipllava", backend), make_batch(TINY["vipllava"], prompts)
    attach(model, method=method, **SCORED.get(method, {}))
    mask = batch.inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    together = model(**batch.inputs, position_ids=positions).logits[:, -1]
    image = 0
    for row, prompt in enumerate(prompts):
        alone = {"input_ids": batch.inputs["input_ids"][row : row + 1, mask[row].bool()]}
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        if "plain" in prompt:
            alone["pixel_values"] = batch.inputs["pixel_values"][image : image + 1]
            image += 1
        torch.testing.assert_close(model(**alone).logits[0, -1], together[row], atol=2e-6, rtol=1e-4)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_every_family_is_served_or_says_why_not(name: str, method: str) -> None:
    """It acts on each image and on nothing else: a prompt of text stays stock's, and so does all of it after detach."""
    model, batch = TINY[name].build(), make_batch(TINY[name], [[TEXT, "tiled", TEXT, "plain", TEXT]])
    text = make_batch(TINY[name], [[TEXT, TEXT]]).inputs
    stock, stock_text = model(**batch.inputs).logits, model(**text).logits
    try:
        handle = attach(model, method=method, **SCORED[method])
        changed = model(**batch.inputs).logits
    except InputError as error:
        assert RIVALS[method].title in str(error) or "attention" in str(error)  # a sentence with the reason
        return
    assert handle.injections == len(batch.images) == 2
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed[:, -1], stock[:, -1]) or name in BLANKS_ALIKE
    assert torch.equal(model(**text).logits, stock_text)
    handle.detach()
    assert torch.equal(model(**batch.inputs).logits, stock)


@pytest.mark.parametrize("method", ["cca", "vcd", "pai with a second pass", *SCORED])
@torch.no_grad()
def test_threads_do_not_mix(method: str) -> None:
    """Two prompts answered in four threads at once: the tokens of each are those that it has alone."""
    family = TINY["vipllava"]
    model = built("vipllava", "sdpa")
    handle = attach(model, method=method.split()[0], **SCORED.get(method, {"strength": 1}))
    prompts = [[[TEXT, "plain", TEXT]], [[TEXT, TEXT, "plain", "plain", TEXT]]]
    batches = [make_batch(family, prompt, seed=number) for number, prompt in enumerate(prompts)]

    def answer(number: int) -> list[torch.Tensor]:
        given = batches[number].inputs
        processor = handle.logits_processor(given)
        more = {"logits_processor": [processor]} if processor is not None else {}
        with torch.no_grad():
            made = model.generate(**given, **GREEDY, **more, output_logits=True, return_dict_in_generate=True)
        return [made.sequences, *made.logits]

    wanted = [answer(number) for number in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, [0, 1] * 6))
    for number, answered in enumerate(found):
        for mine, alone in zip(answered, wanted[number % 2], strict=True):
            assert torch.equal(mine, alone)


@pytest.mark.parametrize("method", ["pai", "uac", "cca"])
@torch.no_grad()
def test_a_static_cache_gives_the_same_tokens(method: str) -> None:
    model, batch = built("vipllava", "sdpa"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method=method, **SCORED.get(method, {}))
    dynamic = model.generate(**batch.inputs, **GREEDY)
    assert torch.equal(model.generate(**batch.inputs, **GREEDY, cache_implementation="static"), dynamic)


@pytest.mark.parametrize("method", ["pai", "uac", "cca"])
@torch.no_grad()
def test_a_second_turn_acts_on_the_images_in_the_cache(method: str) -> None:
    """The last token of a later turn, given alone or with others, has the same logits: its image keys are known."""
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method=method, **SCORED.get(method, {}))
    more = torch.tensor([[50, 51, 52]])

    def last(*cuts: int) -> torch.Tensor:
        cache = transformers.DynamicCache(config=model.config.get_text_config())
        model(**batch.inputs, past_key_values=cache)
        for start, stop in zip((0, *cuts), (*cuts, 3), strict=True):
            past = cache.get_seq_length()
            ids = more[:, start:stop]
            mask = torch.ones(1, past + ids.shape[1], dtype=torch.long)
            logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
        return logits

    ours = last(2)
    if method != "pai":  # PAI raises each call's last query: how a turn is cut is part of it
        torch.testing.assert_close(last(), ours, atol=2e-6, rtol=1e-4)
    handle = model.model._agci_rival
    with handle.suspended():
        assert (last(2) - ours).abs().max() > 1e-7


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_adaptvis_weighs_a_second_turn_by_its_own_confidence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token of the turn looks at the image in the cache with the weight of what stock would say."""
    model, batch = built(name), make_batch(TINY[name], [[TEXT, "plain", TEXT]])
    handle = attach(model, method="adaptvis", strength=1, threshold=0)  # never below: w_high
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    model(**batch.inputs, past_key_values=cache)
    past, more = cache.get_seq_length(), torch.tensor([[50, 51, 52]])
    turn = {"input_ids": more, "attention_mask": torch.ones(1, past + 3, dtype=torch.long)}
    if name == "qwen2_vl":
        turn["position_ids"] = (torch.arange(past, past + 3) + int(model.model.rope_deltas[0])).expand(3, 1, -1)
    with handle.suspended():
        stock = model(**turn, past_key_values=copy.deepcopy(cache)).logits[0, -1]
    columns = images_by_row(batch, 1)[0]
    for threshold, weight in ((0.0, 1.5), (1.0, 0.5)):
        handle.detach()
        handle = attach(model, method="adaptvis", strength=1, threshold=threshold)
        layers = Layers(monkeypatch)
        answer = model(**turn, past_key_values=copy.deepcopy(cache)).logits[0, -1]
        first, second = layers.calls[:2], layers.calls[2:]
        assert len(second) == 2
        for factor, calls in ((1.0, first), (weight, second)):
            for call in calls:

                def scaled(scores: list[float], factor: float = factor) -> list[float]:
                    return [s * factor if key in columns else s for key, s in enumerate(scores)]

                wanted = naive(call, 0, 2, 2, scaled)
                torch.testing.assert_close(call["out"][0, -1, 2].double(), wanted, atol=2e-5, rtol=1e-4)
        assert (answer - stock).abs().max() > 1e-7


@torch.no_grad()
def test_beams() -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    handle = attach(model, method="pai", **SCORED["pai"])
    beams = model.generate(**batch.inputs, **GREEDY, num_beams=2, num_return_sequences=2)
    assert beams.shape[0] == 2
    assert handle.injections == 2
    handle.detach()
    attach(model, method="adaptvis", strength=1)
    with pytest.raises(InputError, match="beam search does not choose: generate with num_beams=1"):
        model.generate(**batch.inputs, **GREEDY, num_beams=2)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("uac", {"num_beams": 2}, "which beam search repeats with the prompt: generate with num_beams=1"),
        ("adaptvis", {"use_cache": False}, "generate with use_cache=True"),
        ("uac", {"use_cache": False}, "generate with use_cache=True"),
        ("pai", {"use_cache": False}, "generate with use_cache=True"),
        ("pai", {"prompt_lookup_num_tokens": 2}, "generate without an assistant"),
        ("pai", {"prefill_chunk_size": 4}, "generate without it"),
    ],
)
@torch.no_grad()
def test_settings_of_generate_that_would_give_other_numbers_are_refused(
    method: str, settings: dict[str, Any], message: str
) -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    handle = attach(model, method=method, **SCORED[method])
    with pytest.raises(InputError, match=f"^{method} .*{message}"):
        model.generate(**batch.inputs, **GREEDY, **settings)
    assert handle.injections == 0
    model.generate(**batch.inputs, **GREEDY)
    assert handle.injections == 1


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"num_beams": 2, "use_cache": False}])
@torch.no_grad()
def test_the_mask_of_cca_needs_no_cache(settings: dict[str, Any]) -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method="cca")
    kept = model.generate(**batch.inputs, **GREEDY, **{**settings, "use_cache": True})
    assert torch.equal(model.generate(**batch.inputs, **GREEDY, **settings), kept)


def test_flash_attention_is_refused_where_scores_are_needed() -> None:
    for method in ("cca", "adaptvis", "pai", "uac"):
        model = built("qwen2_vl", "flash_attention_2")
        with pytest.raises(InputError, match=r"flash_attention_2 does not show: .*'sdpa' or 'eager'"):
            attach(model, method=method)


def test_a_name_that_is_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def others() -> None:
        """Somebody else's attention."""

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "agci_sdpa", others)
    with pytest.raises(InputError, match="'agci_sdpa' is registered already"):
        attach(built("qwen2_vl"), method="pai", strength=0.2)


@torch.no_grad()
def test_cca_is_refused_where_image_tokens_see_each_other() -> None:
    model, batch = TINY["gemma3"].build(), make_batch(TINY["gemma3"], [[TEXT, "plain", TEXT]])
    attach(model, method="cca")
    with pytest.raises(InputError, match="see each other already: take cca_positions"):
        model(**batch.inputs)


def test_two_methods_that_do_not_combine() -> None:
    model = built("qwen2_vl")
    attach(model, 0.5)
    for method in ("cca", "adaptvis", "pai", "uac", "vcd"):
        assert not RIVALS[method].combines
        with pytest.raises(InputError, match=f"{method} cannot stand beside AGCI"):
            attach(model, method=method)


# --- a second pass ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_vcd_against_whole_prompts(name: str, beams: int) -> None:
    """(1 + alpha) l(v) - alpha l(v'), cut below beta of the largest; v' by the noise of the docstring, redone here."""
    model, batch = built(name), make_batch(TINY[name], [[TEXT, "plain", TEXT], [TEXT, TEXT, "plain", TEXT]])
    handle = attach(model, method="vcd", strength=1, seed=3)
    processor = handle.logits_processor(batch.inputs)
    settings = {**GREEDY, "num_beams": beams}
    answer = model.generate(**batch.inputs, **settings, logits_processor=[processor])
    pixels = batch.inputs["pixel_values"]
    x = torch.linspace(-6, 6, 1000, dtype=torch.float64)
    left = float((1 - (1e-5 + torch.sigmoid(x) * (5e-3 - 1e-5)))[:501].prod())
    draw = torch.Generator().manual_seed(3)  # of one image, patch by patch; the other one's is the same
    noise = torch.stack([torch.randn(pixels.shape[1:], generator=draw) for _ in range(len(pixels) // 2)]).repeat(
        2, *[1] * (pixels.dim() - 1)
    )
    noised = dict(batch.inputs, pixel_values=math.sqrt(left) * pixels + math.sqrt(1 - left) * noise)
    handle.detach()
    clean, dark = model(**batch.inputs).logits[:, -1], model(**noised).logits[:, -1]
    wanted = (2 * clean - dark).repeat_interleave(beams, dim=0)[:, 40:]  # the tokens before are suppressed
    found = processor.first[:, 40:]
    torch.testing.assert_close(found - found[:, :1], wanted - wanted[:, :1], atol=2e-5, rtol=1e-4)
    if beams > 1:
        return
    for row in range(2):  # each next token, from whole prompts without any cache
        ids = answer[row : row + 1]
        prompt = batch.inputs["input_ids"].shape[1]
        for step in range(3):
            both = []
            for source in (batch.inputs, noised):
                given = _row(name, source, row)
                new = ids[:, prompt : prompt + step]
                given["input_ids"] = torch.cat([given["input_ids"], new], dim=1)
                given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(new)], dim=1)
                if "mm_token_type_ids" in given:
                    given["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
                both.append(model(**given).logits[0, -1])
            scores = 2 * both[0] - both[1]
            scores[both[0] < both[0].max() + math.log(0.1)] = -math.inf
            scores[MARKS] = -math.inf
            assert int(scores.argmax()) == int(ids[0, prompt + step])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_vcd_in_a_second_turn_is_vcd_on_the_whole_conversation(name: str) -> None:
    model, batch = built(name), make_batch(TINY[name], [[TEXT, "plain", TEXT]])
    handle = attach(model, method="vcd", strength=1, seed=3)
    more = torch.tensor([[50, 51, 52]])
    whole = dict(batch.inputs)
    whole["input_ids"] = torch.cat([whole["input_ids"], more], dim=1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = (whole["input_ids"] == 30).long()
    once = handle.logits_processor(whole)
    wanted = model.generate(**whole, **GREEDY, logits_processor=[once])
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    model(**batch.inputs, past_key_values=cache)
    later = handle.logits_processor(whole)
    text = {key: whole[key] for key in ("input_ids", "attention_mask")}
    found = model.generate(**text, **GREEDY, past_key_values=cache, logits_processor=[later])
    assert torch.equal(found, wanted)
    torch.testing.assert_close(later.first, once.first, atol=2e-5, rtol=1e-4)


def _row(name: str, inputs: Any, row: int) -> dict[str, torch.Tensor]:
    """One prompt of the batch, padding left out, with its image."""
    kept = inputs["attention_mask"][row].bool()
    given = {
        key: value[row : row + 1, kept]
        for key, value in inputs.items()
        if value.shape == inputs["attention_mask"].shape
    }
    if name == "vipllava":
        return given | {"pixel_values": inputs["pixel_values"][row : row + 1]}
    size = int(inputs["image_grid_thw"][0].prod())
    return given | {
        "pixel_values": inputs["pixel_values"][row * size : (row + 1) * size],
        "image_grid_thw": inputs["image_grid_thw"][row : row + 1],
    }


@torch.no_grad()
def test_pai_contrast_against_the_prompt_without_image() -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT], [TEXT, TEXT, "plain", TEXT]])
    handle = attach(model, method="pai", strength=0.5, gamma=1.5, first_layer=0)
    processor = handle.logits_processor(batch.inputs)
    boosted = model(**batch.inputs).logits[:, -1].log_softmax(-1)
    model.generate(**batch.inputs, do_sample=False, max_new_tokens=2, logits_processor=[processor])
    for row in range(2):
        ids = [t for t in batch.inputs["input_ids"][row].tolist() if t not in (0, 30)]
        with handle.suspended():
            text = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        wanted = 1.5 * (boosted[row] - text) + text
        torch.testing.assert_close(processor.first[row], wanted, atol=2e-5, rtol=1e-4)
    assert attach_neutral(model, handle).logits_processor(batch.inputs) is None


def attach_neutral(model: Any, handle: Any) -> Any:
    handle.strength = 0
    return handle


def test_a_second_pass_needs_the_logits() -> None:
    model = built("vipllava")
    for method in ("vcd", "pai", "adaptvis"):
        with pytest.raises(InputError, match="has no output matrix: give the model around it"):
            attach(model.model, method=method, strength=1)
