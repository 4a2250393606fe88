"""Several questions about one image: the decoder computes their common beginning once, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import FAMILIES, build_model, random_image
from transformers import DynamicCache

from transformers_agci import agci
from transformers_agci.inference import prefix_replay, prompt
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prefix_replay import PrefixReplay, Prompts
from transformers_agci.inference.questions import Question

SIZES = ((120, 90), (90, 90), (64, 120))  # pixels: width, height
# Longer and shorter than the first question, sharing much and nothing of its words.
SLOTS = (
    ("Is there a red square in the middle?", "Is there a dog?", "What?"),
    ("Is there a red dog?", "Is there a cat, or is there a very small dog in the image?", "Is"),
    ("No", "Is there a dog? No", "What? The image"),
)


def batch(loaded: LoadedModel, texts: tuple[str, ...], order: tuple[int, ...] = (0, 1, 2)) -> dict[str, torch.Tensor]:
    shown = [[random_image(number, *SIZES[number])] for number in order[: len(texts)]]
    chats = [prompt.chat_text(loaded.processor, Question({}, "x:1", text, (None,))) for text in texts]
    return prompt.tokenize(loaded.processor, chats, shown)


def prompts(inputs: dict[str, torch.Tensor], keys: tuple[str, ...]) -> Prompts:
    return Prompts(keys, inputs["input_ids"], inputs["attention_mask"])


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens [B, tokens] and the raw logits before each [B, tokens, V]."""
    with torch.inference_mode():
        made = model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return made.sequences[:, -tokens:], torch.stack(made.logits, dim=1)


@pytest.fixture
def loaded(tiny_checkpoint: Callable[[str], Path], request: pytest.FixtureRequest) -> LoadedModel:
    return load(LoadOptions(str(tiny_checkpoint(request.param))))


every_family = pytest.mark.parametrize("loaded", FAMILIES, indirect=True)


@pytest.mark.sampled(3)
@every_family
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_answers_are_those_of_the_whole_prompt(loaded: LoadedModel, lam: float) -> None:
    model, keys = loaded.model, ("a", "b", "c")
    asked = [batch(loaded, texts) for texts in SLOTS]
    with agci(model, lam):
        stock = [generate(model, inputs) for inputs in asked]
        with PrefixReplay(model) as prefix:
            replayed = []
            for number, inputs in enumerate(asked):
                prefix.set_prompts(prompts(inputs, keys), keep=number == 0)
                replayed.append(generate(model, inputs))
        spared = prefix.replayed_tokens
        computed = prefix.prefill_tokens
    for (tokens, logits), (other_tokens, other_logits) in zip(stock, replayed, strict=True):
        assert torch.equal(tokens, other_tokens)
        assert torch.allclose(logits, other_logits, atol=2e-5, rtol=0)
    total = sum(int(inputs["attention_mask"].sum()) for inputs in asked)
    assert computed + spared == total
    assert spared > 0
    assert "forward" not in vars(prefix.decoder)


@every_family
def test_the_recorded_keys_and_values_matter(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: keys and values one column further make other logits."""

    def fill_wrongly(cache: Any, record: Any, reuse: Any) -> None:
        layers = [None if layer is None else tuple(part.roll(1, dims=2) for part in layer) for layer in record.layers]
        right(cache, record._replace(layers=layers), reuse)

    right = prefix_replay._fill
    monkeypatch.setattr(prefix_replay, "_fill", fill_wrongly)
    first, later = (batch(loaded, texts) for texts in SLOTS[:2])
    stock = generate(loaded.model, later)
    with PrefixReplay(loaded.model) as prefix:
        prefix.set_prompts(prompts(first, ("a", "b", "c")), keep=True)
        generate(loaded.model, first)
        prefix.set_prompts(prompts(later, ("a", "b", "c")))
        assert float((generate(loaded.model, later)[1] - stock[1]).abs().max()) > 1e-2


@every_family
def test_what_is_computed_is_the_longest_question_tail(loaded: LoadedModel) -> None:
    """Two prompts that differ in their last word cost what stands from that word on."""
    model = loaded.model
    first, second = (batch(loaded, (f"Is there a red {word}?",)) for word in ("dog", "cat"))
    same = int((first["input_ids"] == second["input_ids"])[0].int().argmin())
    with PrefixReplay(model) as prefix:
        prefix.set_prompts(prompts(first, ("a",)), keep=True)
        generate(model, first)
        assert prefix.prefill_tokens == first["input_ids"].shape[1]
        prefix.set_prompts(prompts(second, ("a",)))
        generate(model, second)
    assert prefix.prefill_tokens == first["input_ids"].shape[1] + second["input_ids"].shape[1] - same
    assert prefix.replayed_tokens == same


@every_family
def test_rows_may_come_in_another_order_and_leave_some_out(loaded: LoadedModel) -> None:
    model = loaded.model
    first = batch(loaded, SLOTS[0])
    later = batch(loaded, SLOTS[1][1:], order=(2, 1))
    with PrefixReplay(model) as prefix:
        stock = generate(model, later)
        prefix.set_prompts(prompts(first, ("a", "b", "c")), keep=True)
        generate(model, first)
        prefix.set_prompts(prompts(later, ("c", "b")))
        replayed = generate(model, later)
        assert prefix.replayed_tokens > 0
    assert torch.equal(stock[0], replayed[0])
    assert torch.allclose(stock[1], replayed[1], atol=2e-5, rtol=0)


@pytest.mark.sampled(4)
@every_family
@pytest.mark.parametrize("case", ["other images", "not named", "forgotten", "other text before", "static cache"])
def test_where_it_cannot_be_the_decoder_computes_everything(loaded: LoadedModel, case: str) -> None:
    model = loaded.model
    first, later = (batch(loaded, texts[:1]) for texts in SLOTS[:2])
    known = prompts(later, ("a",))
    with PrefixReplay(model) as prefix:
        prefix.set_prompts(prompts(first, ("a",)), keep=True)
        generate(model, first)
        if case == "other images":
            known = prompts(later, ("b",))
        elif case == "other text before":
            known.ids[0, 0] += 1
        elif case == "forgotten":
            prefix.clear()
        prefix.set_prompts(None if case == "not named" else known)
        if case == "static cache":
            model.generation_config.cache_implementation = "static"
        generate(model, later)
    assert prefix.replayed_tokens == 0


@pytest.mark.parametrize("window", [24, 4096])
def test_a_window_that_has_forgotten_the_image_is_not_replayed(
    window: int, tiny_checkpoint: Callable[[str], Path]
) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint("llava_next"))))
    config = loaded.model.config.get_text_config()
    config.sliding_window = window
    first, later = (batch(loaded, texts[:1]) for texts in SLOTS[:2])
    stock = generate(loaded.model, later)
    with PrefixReplay(loaded.model) as prefix:
        prefix.set_prompts(prompts(first, ("a",)), keep=True)
        generate(loaded.model, first)
        prefix.set_prompts(prompts(later, ("a",)))
        replayed = generate(loaded.model, later)
    assert (prefix.replayed_tokens > 0) is (window == 4096)
    assert torch.equal(stock[0], replayed[0])


def test_a_forward_that_stood_there_is_put_back() -> None:
    model = build_model("llava")
    decoder = PrefixReplay(model).decoder
    mine = decoder.forward
    decoder.forward = mine
    with PrefixReplay(model):
        assert decoder.forward is not mine
    assert vars(decoder)["forward"] is mine


def test_dynamic_cache_still_names_what_is_read() -> None:
    """What `PrefixReplay` reads of transformers' cache; a version that renames it must be seen here."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert cache.layers[0].keys.shape == cache.layers[0].values.shape == (1, 2, 3, 4)
