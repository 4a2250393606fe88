"""The contract of attach, the same for all six families: what the decoder gets. Each check fails when the
decoder's hook does nothing (test_contract_can_fail.py shows it), and lambda 0 is held to stock bit for bit."""

import inspect
from typing import Any

import pytest
import torch
from decoder_inputs import decoder_input, expected_embeds, images_of, left_padded, recorded_decoder_inputs
from tiny_checkpoints import build_model, image_tokens, make_inputs

from transformers_agci import attach, image_embeddings
from transformers_agci.method.handle import current_handle

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks by the old name
]


def images(family: str, model: Any, inputs: dict[str, torch.Tensor]) -> list[tuple[int, int, int]]:
    return images_of(inputs["input_ids"], model.config.image_token_id, image_tokens(family))


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("lam", [0.25, 1.0])
def test_decoder_receives_the_formula(family: str, model: Any, lam: float, scope: str) -> None:
    inputs = make_inputs(family, model, batch=3, images=2)
    stock = decoder_input(model, inputs)
    handle = attach(model, lam, scope=scope)
    found = images(family, model, inputs)
    assert len(found) == 6
    expected = expected_embeds(stock, found, lam, scope)
    assert (expected - stock).abs().max() > 1e-3
    torch.testing.assert_close(decoder_input(model, inputs).double(), expected, atol=1e-5, rtol=0)
    assert handle.injections == 6


def test_lambda_zero_is_stock_bit_for_bit(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2)
    with torch.no_grad():
        stock = model(**inputs).logits
        handle = attach(model, 0.5)
        changed = model(**inputs).logits
        handle.lam = 0.0
        assert torch.equal(model(**inputs).logits, stock)
        assert not torch.equal(changed, stock)
        assert handle.injections == 2
        handle.lam = 0.5
        assert torch.equal(model(**inputs).logits, changed)
        handle.detach()
        assert torch.equal(model(**inputs).logits, stock)
    assert handle.injections == 4


def test_batch_mates_do_not_matter(family: str, model: Any) -> None:
    samples = [make_inputs(family, model, n_text=n, seed=n) for n in (6, 11, 8)]
    batch = left_padded(samples, model.config.get_text_config().pad_token_id)
    attach(model, 1.0)
    with torch.no_grad():
        together = model(**batch).logits
        for row, sample in enumerate(samples):
            alone = model(**sample).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-5, rtol=0)
    embeds = decoder_input(model, batch)
    found = images(family, model, batch)
    stock = decoder_input(model, batch, before=True)
    torch.testing.assert_close(embeds.double(), expected_embeds(stock, found, 1.0), atol=1e-5, rtol=0)


def test_adjacent_images_are_two_images() -> None:
    for family in ("llava", "llava_next"):
        model = build_model(family)
        inputs = make_inputs(family, model, batch=2, images=2, gap=0)
        stock = decoder_input(model, inputs)
        handle = attach(model, 1.0)
        expected = expected_embeds(stock, images(family, model, inputs), 1.0)
        torch.testing.assert_close(decoder_input(model, inputs).double(), expected, atol=1e-5, rtol=0)
        with torch.no_grad(), recorded_decoder_inputs(model) as seen:
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=0)
        assert handle.injections == 8


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_injects_once_per_image(family: str, model: Any, beams: int) -> None:
    inputs = make_inputs(family, model, batch=2, images=2)
    handle = attach(model, 0.5)
    # Before 5.18 beam search deals the images of a prompt to the wrong beams: what counts is what arrives.
    recorded = recorded_decoder_inputs(model, before_injection=True), recorded_decoder_inputs(model)
    with torch.no_grad(), recorded[0] as stock, recorded[1] as seen:
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=beams)
    assert len(seen) == len(stock) == 4  # prefill and three tokens
    assert len(seen[0]) == 2 * beams
    ids = inputs["input_ids"].repeat_interleave(beams, dim=0)
    expected = expected_embeds(stock[0], images(family, model, {"input_ids": ids}), 0.5)
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=0)
    assert handle.injections == 2 * len(seen[0])
    for before, after in zip(stock[1:], seen[1:], strict=True):
        assert after.shape[1] == 1
        assert torch.equal(before, after)


def test_inputs_embeds_with_pixels(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2)
    attach(model, 0.5)
    by_ids = decoder_input(model, inputs)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}
    if "per_layer_inputs" in inspect.signature(model.model.forward).parameters:  # Gemma3n in newer versions
        ids = inputs["input_ids"]
        known = ids < model.config.text_config.vocab_size_per_layer_input
        given["per_layer_inputs"] = model.model.language_model.get_per_layer_inputs(ids.where(known, 0))
    by_embeds = decoder_input(model, given)
    rows = inputs["input_ids"] == model.config.image_token_id
    torch.testing.assert_close(by_embeds[rows], by_ids[rows], atol=1e-5, rtol=0)
    assert current_handle(model).injections == 4


def test_text_only_is_stock(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in inputs}
    text["input_ids"] = text["input_ids"].masked_fill(text["input_ids"] == model.config.image_token_id, 20)
    if "mm_token_type_ids" in text:
        text["mm_token_type_ids"] = torch.zeros_like(text["input_ids"])
    with torch.no_grad():
        stock = model(**text).logits
        handle = attach(model, 0.5)
        assert torch.equal(model(**text).logits, stock)
        assert handle.injections == 0
        model(**inputs)
    assert handle.injections == 2  # the same hooks do fire where there are images


def test_hidden_dummy_image_is_left_alone(family: str, model: Any) -> None:
    """A training framework gives a text-only row an image that no token attends to."""
    inputs = make_inputs(family, model, batch=2)
    stock = decoder_input(model, inputs)
    hidden = inputs["input_ids"][1] == model.config.image_token_id
    inputs["attention_mask"][1, hidden] = 0
    handle = attach(model, 0.5)
    result = decoder_input(model, inputs)
    assert handle.injections == 1
    assert torch.equal(result[1], stock[1])
    expected = expected_embeds(stock, images(family, model, inputs)[:1], 0.5)
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)


def test_image_embeddings(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2, images=2)
    stock = decoder_input(model, inputs)
    found = images(family, model, inputs)
    with torch.no_grad():
        plain = image_embeddings(model, inputs)
        handle = attach(model, 0.5)
        under_agci = image_embeddings(model, inputs)
    assert handle.injections == 0
    assert len(plain) == len(under_agci) == 4
    for tokens, again, (row, start, stop) in zip(plain, under_agci, found, strict=True):
        assert torch.equal(tokens, stock[row, start:stop])
        assert torch.equal(again, tokens)
    decoder_input(model, inputs)
    assert handle.injections == 4


def test_bfloat16_follows_the_float32_formula(family: str) -> None:
    model = build_model(family).to(torch.bfloat16)
    inputs = make_inputs(family, model, batch=2)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    stock = decoder_input(model, inputs)
    attach(model, 1.0)
    result = decoder_input(model, inputs)
    assert result.dtype == torch.bfloat16
    expected = expected_embeds(stock, images(family, model, inputs), 1.0).to(torch.bfloat16)
    assert not torch.equal(result, stock)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0.008)  # one rounding of bfloat16


def test_inner_model(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    with torch.no_grad():
        stock = model.model(**inputs).last_hidden_state
        handle = attach(model.model, 0.5)
        changed = model(**inputs, output_hidden_states=True)
        assert not torch.equal(model.model(**inputs).last_hidden_state, stock)
    assert torch.isfinite(changed.logits).all()
    assert handle.injections == 2


@pytest.mark.parametrize("method", ["uniform", "random"])
def test_controls_reach_the_decoder(family: str, model: Any, method: str) -> None:
    from transformers_agci.method.injection import METHODS

    inputs = make_inputs(family, model)
    stock = decoder_input(model, inputs)
    attach(model, 0.5, method=method)
    [(row, start, stop)] = images(family, model, inputs)
    result = decoder_input(model, inputs)
    assert (result - stock).abs().max() > 1e-4
    torch.testing.assert_close(result[row, start:stop], METHODS[method](stock[row, start:stop], 0.5))
    assert torch.equal(result[:, :start], stock[:, :start])


def test_embeddings_of_inputs_without_an_image() -> None:
    model = build_model("llava")
    with pytest.raises(ValueError, match="no image"):
        image_embeddings(model, {"input_ids": torch.tensor([[20, 21]])})
