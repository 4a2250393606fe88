"""Prompts that hold image tokens without images: refused where an image was lost, served where none was."""

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE, expected_embeds, images_of, recorded_decoder_inputs
from tiny_checkpoints import build_model, image_tokens, make_inputs

from transformers_agci import attach
from transformers_agci.method.handle import current_handle

pytestmark = pytest.mark.filterwarnings("ignore")


def text_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in inputs}


def test_lost_image_is_refused(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    handle = attach(model, 0.0)
    with torch.no_grad():
        model(input_ids=inputs["input_ids"])
        handle.lam = 0.5
        with pytest.raises(ValueError, match="no images came with it"):
            model(input_ids=inputs["input_ids"])


def test_typed_image_token_is_text(family: str, model: Any) -> None:
    """A user may write <image> in a question; stock reads it as a word."""
    ids = torch.tensor([[20, 21, model.config.image_token_id, 22, 23, 24]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        stock = model(**text).logits
        handle = attach(model, 0.5)
        assert torch.equal(model(**text).logits, stock)
    assert handle.injections == 0


@pytest.mark.parametrize("given", [True, False], ids=["cache given", "cache made by the model"])
def test_image_tokens_after_images_are_text(family: str, model: Any, given: bool) -> None:
    """Prompt lookup proposes pieces of the prompt as an answer."""
    inputs = make_inputs(family, model)
    candidates = torch.tensor([[20, *[model.config.image_token_id] * 2]])
    handle = attach(model, 0.0)

    def verify() -> torch.Tensor:
        cache = {CACHE: transformers.DynamicCache(config=model.config)} if given else {}
        with torch.no_grad():
            output = model(**inputs, use_cache=True, **cache)
            return model(input_ids=candidates, **{CACHE: output[CACHE]}).logits

    verify()
    handle.lam = 0.5
    assert torch.isfinite(verify()).all()
    assert handle.injections == 1


def test_reset_cache_holds_no_images(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    attach(model, 0.5)
    cache = transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=256)
    with torch.no_grad():
        model(**inputs, **{CACHE: cache})
        cache.reset()
        with pytest.raises(ValueError, match="no images came with it"):
            model(input_ids=inputs["input_ids"], **{CACHE: cache})


@pytest.mark.parametrize("images", [1, 2])
def test_chunk_as_long_as_the_prompt(family: str, model: Any, images: int) -> None:
    inputs = make_inputs(family, model, images=images, gap=1 if family == "internvl" else 0)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    chunk = settings | {"prefill_chunk_size": 1000}
    handle = attach(model, 0.0)
    with torch.no_grad():
        with recorded_decoder_inputs(model) as stock:
            model.generate(**inputs, **settings)
        try:
            with recorded_decoder_inputs(model) as stock_in_chunks:
                model.generate(**inputs, **chunk)
        except Exception as error:
            pytest.skip(f"stock itself fails here: {error!r}")
        length = stock_in_chunks[0].shape[1]  # 4.57 keeps the last token for a step of its own
        handle.lam = 0.5
        if not torch.equal(stock_in_chunks[0], stock[0][:, :length]):  # 5.6 itself loses the images
            with pytest.raises(ValueError, match="prefill_chunk_size"):
                model.generate(**inputs, **chunk)
            return
        with recorded_decoder_inputs(model) as whole:
            model.generate(**inputs, **settings)
        with recorded_decoder_inputs(model) as in_chunks:
            model.generate(**inputs, **chunk)
    assert torch.equal(whole[0][:, :length], in_chunks[0])
    assert handle.injections == 2 * images


def test_mask_as_long_as_a_static_cache(family: str, model: Any) -> None:
    """[B, 256] for a prompt of 14 and more tokens: the columns of the prompt say which images are hidden."""
    inputs = make_inputs(family, model, batch=2)
    length = inputs["input_ids"].shape[1]
    image = inputs["input_ids"][1] == model.config.image_token_id
    inputs["attention_mask"][1, image] = 0  # the second row's image is a dummy
    handle = attach(model, 0.5)
    with torch.no_grad():
        with recorded_decoder_inputs(model, before_injection=True) as before:
            model(**inputs, **{CACHE: cache_of(model)})
        assert handle.injections == 1
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 256 - length))
        try:
            with handle.suspended():
                model(**inputs, **{CACHE: cache_of(model)})
        except IndexError as error:
            pytest.skip(f"stock itself takes no such mask: {error!r}")
        with recorded_decoder_inputs(model) as after:
            model(**inputs, **{CACHE: cache_of(model)})
    found = images_of(inputs["input_ids"][:1], model.config.image_token_id, image_tokens(family))
    torch.testing.assert_close(after[0].double(), expected_embeds(before[0], found, 0.5), atol=1e-5, rtol=0)
    assert handle.injections == 2


def cache_of(model: Any) -> Any:
    return transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=256)


def test_image_in_a_second_turn_on_a_static_cache(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    length = inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(torch.ones_like(inputs["input_ids"]), (3, 256 - length - 3), value=0)
    mask[:, :3] = 1
    handle = attach(model, 0.5)
    cache = cache_of(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[20, 21, 22]]), **{CACHE: cache})
        positions = {"cache_position": torch.arange(3, 3 + length)}
        try:
            model(**inputs | {"attention_mask": mask} | positions, **{CACHE: cache})
        except Exception:
            handle.lam = 0.0
            with pytest.raises(Exception):  # noqa: B017
                model(**inputs | {"attention_mask": mask} | positions, **{CACHE: cache_of(model)})
            pytest.skip("stock cannot")
    assert handle.injections == 1


def test_draft_model_is_warned_of(family: str, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Assisted decoding gives the draft the prompt without its images."""
    inputs = make_inputs(family, model)
    draft = copy.deepcopy(model)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    attach(model, 0.0)
    attach(draft, 0.0)
    with torch.no_grad():
        try:
            model.generate(**inputs, **settings, assistant_model=draft)
        except Exception as error:
            pytest.skip(f"stock itself fails here: {type(error).__name__}")
        current_handle(model).lam = current_handle(draft).lam = 0.5
        expected = model.generate(**inputs, **settings)
        assert torch.equal(model.generate(**inputs, **settings, assistant_model=draft), expected)
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "draft" in r.getMessage()]
    assert messages or current_handle(draft).injections


@pytest.mark.slow
def test_requests_of_a_batch_do_not_fail_their_mates() -> None:
    """generate_batch packs requests into one row."""
    model = build_model("llava", attn_implementation="sdpa")
    if not hasattr(model, "generate_batch"):
        pytest.skip("this version has no generate_batch")
    image = model.config.image_token_id
    requests = [[20, 21, 22, 23], [20, image, image, 21]]
    settings = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def answers() -> list[list[int]]:
        results = model.generate_batch(requests, generation_config=settings)
        return [results[key].generated_tokens for key in sorted(results)]

    try:
        stock = answers()
    except Exception as error:
        pytest.skip(f"stock cannot on the CPU: {error!r}")
    if len(stock) < 2 or not all(stock):
        pytest.skip("stock gives no answers on the CPU")
    attach(model, 0.5)
    assert answers() == stock


@pytest.mark.parametrize("method", ["agci", "bapa", "adaptvis"])
def test_tracing_is_refused_where_it_would_keep_positions(method: str) -> None:
    """torch.jit.trace writes into its graph where the images of the example stand."""
    model = build_model("llava")
    inputs = make_inputs("llava", model)

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(**{**inputs, "input_ids": ids}, use_cache=False).logits

    handle = attach(model, 0.5) if method == "agci" else attach(model, method=method, strength=1)
    with pytest.raises(ValueError, match="the wrong tokens would be changed"):
        torch.jit.trace(Call(), (inputs["input_ids"],), check_trace=False)
    if method != "agci":
        return  # a trace takes over a second
    handle.strength = 0
    try:
        traced = torch.jit.trace(Call(), (inputs["input_ids"],), check_trace=False)
    except (RuntimeError, IndexError) as error:
        handle.detach()
        with pytest.raises(type(error)):  # so does stock of transformers 4.57.6 and 5.6.0
            torch.jit.trace(Call(), (inputs["input_ids"],), check_trace=False)
        return
    with torch.no_grad():
        torch.testing.assert_close(traced(inputs["input_ids"]), model(**inputs).logits, atol=1e-5, rtol=0)
