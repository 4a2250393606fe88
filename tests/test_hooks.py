"""The contract of attach, the same for all six families. Each check fails when the decoder's hook does nothing
(test_contract_can_fail.py shows it), and lambda 0 is held to stock bit for bit."""

import copy
import inspect
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import expected_embeds, images_of, left_padded, recorded_decoder_inputs, training_gradients
from tiny_checkpoints import build_model, image_tokens, make_inputs, make_pixels

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, agci, attach, image_embeddings
from transformers_agci.method.handle import current_handle

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks by the old name
]


def decoder_input(model: Any, inputs: dict[str, torch.Tensor], before: bool = False) -> torch.Tensor:
    with torch.no_grad(), recorded_decoder_inputs(model, before) as seen:
        model(**inputs)
    assert len(seen) == 1
    return seen[0]


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


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora(family: str, model: Any, order: str) -> None:
    import peft

    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    inputs = make_inputs(family, model, batch=2)
    torch.manual_seed(0)
    if order == "before":
        handle = attach(model, 0.5)
        wrapped = peft.get_peft_model(model, lora)
    else:
        wrapped = peft.get_peft_model(model, lora)
        handle = attach(wrapped, 0.5)
    wrapped.eval()
    with torch.no_grad():
        adapted = wrapped(**inputs).logits
        assert handle.injections == 2
        handle.lam = 0.0
        without = wrapped(**inputs).logits
        handle.lam = 0.5
        merged = wrapped.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, adapted, atol=1e-4, rtol=0)
    assert (adapted - without).abs().max() > 1e-3
    assert handle.injections == 4
    assert getattr(merged.config, LAMBDA_KEY) == 0.5


def test_gradient_checkpointing_gives_equal_gradients(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2)
    labels = inputs["input_ids"].where(inputs["input_ids"] < 200, -100)

    def gradients(lam: float, checkpointing: bool) -> dict[str, torch.Tensor]:
        found, injections = training_gradients(model, inputs, labels, lam, checkpointing)
        assert injections >= 2 * bool(lam)
        return found

    plain, checkpointed, stock = gradients(0.5, False), gradients(0.5, True), gradients(0.0, False)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], atol=1e-5, rtol=1e-3)
    assert any((plain[name] - stock[name]).abs().max() > 1e-5 for name in plain)


def test_deepcopy_is_independent(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2)
    handle = attach(model, 0.5)
    twin = copy.deepcopy(model)
    twin_handle = current_handle(twin)
    assert twin_handle is not None
    assert twin_handle is not handle
    with torch.no_grad():
        changed = model(**inputs).logits
        assert torch.equal(twin(**inputs).logits, changed)
        handle.lam = 0.0
        stock = model(**inputs).logits
        assert not torch.equal(stock, changed)
        assert torch.equal(twin(**inputs).logits, changed)
        assert (handle.injections, twin_handle.injections) == (2, 4)
        twin_handle.detach()
        assert torch.equal(twin(**inputs).logits, stock)
    assert handle.attached


def test_save_and_load_keep_lambda(family: str, model: Any, tmp_path: Path) -> None:
    inputs = make_inputs(family, model)
    attach(model, 0.5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert getattr(loaded.config, LAMBDA_KEY) == 0.5
    handle = current_handle(loaded) or attach(loaded, getattr(loaded.config, LAMBDA_KEY))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    assert handle.injections == 1


def in_threads(*work: Any) -> None:
    failures: list[BaseException] = []

    def guarded(task: Any) -> None:
        try:
            with torch.no_grad():
                task()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_two_threads_on_one_model(family: str, model: Any) -> None:
    samples = [make_inputs(family, model, batch=b, n_text=n, seed=n) for b, n in ((2, 6), (3, 9))]
    with torch.no_grad():
        stock = [model(**sample).logits for sample in samples]
        handle = attach(model, 1.0)
        alone = [model(**sample).logits for sample in samples]
    assert not torch.equal(stock[0], alone[0])
    handle.injections = 0

    def repeat(index: int) -> None:
        for _ in range(8):
            torch.testing.assert_close(model(**samples[index]).logits, alone[index], atol=1e-5, rtol=0)

    in_threads(lambda: repeat(0), lambda: repeat(1))
    assert handle.injections == 8 * (2 + 3)


def test_two_models_with_two_lambdas_in_two_threads(family: str, model: Any) -> None:
    models = [model, build_model(family, seed=1)]
    inputs = make_inputs(family, model, batch=2)
    for one, lam in zip(models, (0.5, 1.0), strict=True):
        attach(one, lam)
    with torch.no_grad():
        alone = [one(**inputs).logits for one in models]

    def repeat(index: int) -> None:
        for _ in range(6):
            torch.testing.assert_close(models[index](**inputs).logits, alone[index], atol=1e-5, rtol=0)

    in_threads(lambda: repeat(0), lambda: repeat(1))
    assert [current_handle(one).injections for one in models] == [2 * 7, 2 * 7]


def test_nothing_is_pending_after_an_exception(family: str, model: Any) -> None:
    from transformers_agci.method import thread_state

    inputs = make_inputs(family, model)
    handle = attach(model, 0.5)
    broken = make_pixels(family, model, images=3)  # one image in the text, three in pixels
    with pytest.raises(Exception), torch.no_grad():  # noqa: B017 - stock's own error, its type differs by version
        model(**inputs | broken)
    assert thread_state.is_idle()
    decoder_input(model, inputs)
    assert handle.injections == 1
    assert thread_state.is_idle()


def test_chunked_prefill_is_refused(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    handle = attach(model, 0.5)
    chunk = 4 + image_tokens(family) // 2  # cuts the image
    with pytest.raises(Exception), torch.no_grad():  # noqa: B017 - before 5.18 stock itself refuses
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=chunk)
    assert handle.injections == 0
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=2)
    assert handle.injections == 1


def test_attach_twice_is_an_error(family: str, model: Any) -> None:
    handle = attach(model, 0.5)
    with pytest.raises(ValueError, match="already attached"):
        attach(model, 0.7)
    assert handle.lam == 0.5
    handle.detach()
    handle.detach()
    assert current_handle(model) is None
    assert attach(model, 0.7).lam == 0.7


def test_context_manager_restores(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    with torch.no_grad():
        stock = model(**inputs).logits
        with agci(model, 0.5) as handle:
            half = model(**inputs).logits
            with agci(model, 1.0, scope="batch") as inner:
                assert inner is handle
                assert handle.lam == 1.0
                assert not torch.equal(model(**inputs).logits, half)
            assert (handle.lam, handle.scope) == (0.5, "image")
            assert torch.equal(model(**inputs).logits, half)
        assert not torch.equal(half, stock)
        assert torch.equal(model(**inputs).logits, stock)
    assert not hasattr(model.config, LAMBDA_KEY)
    with pytest.raises(RuntimeError), agci(model, 0.5):
        raise RuntimeError
    assert current_handle(model) is None


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "abc", "0.5", None])
def test_bad_lambda(bad: object) -> None:
    model = build_model("llava")
    with pytest.raises(ValueError, match="lam is"):
        attach(model, bad)
    assert current_handle(model) is None
    handle = attach(model, 0.5)
    with pytest.raises(ValueError, match=r"handle\.lam is"):
        handle.lam = bad
    assert handle.lam == 0.5
    setattr(model.config, LAMBDA_KEY, bad)
    with pytest.raises(ValueError, match="config"):
        model(**make_inputs("llava", model))


def test_bad_scope_and_method() -> None:
    model = build_model("llava")
    with pytest.raises(ValueError, match="scope must be one of image, batch"):
        attach(model, 0.5, scope="row")
    with pytest.raises(ValueError, match="method must be one of agci, uniform, random"):
        attach(model, 0.5, method="zero")


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


def test_repr() -> None:
    model = build_model("qwen2_5_vl")
    handle = attach(model, 0.5)
    assert repr(handle) == "AGCI(lam=0.5, scope=image, family=qwen2_5_vl, images=0)"
    decoder_input(model, make_inputs("qwen2_5_vl", model, batch=2))
    assert repr(handle) == "AGCI(lam=0.5, scope=image, family=qwen2_5_vl, images=2)"


def test_unsupported_model_lists_the_supported_ones() -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ValueError, match="does not support LlamaForCausalLM") as error:
        attach(transformers.LlamaForCausalLM(config), 0.5)
    assert all(family in str(error.value) for family in SUPPORTED_FAMILIES)


def test_embeddings_of_inputs_without_an_image() -> None:
    model = build_model("llava")
    with pytest.raises(ValueError, match="no image"):
        image_embeddings(model, {"input_ids": torch.tensor([[20, 21]])})
