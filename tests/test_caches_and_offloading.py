"""The rest of the contract: caches, assisted decoding, offloading. Every check runs at lambda 0 first; where stock
itself fails there, AGCI is held to fail in the same way."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE, expected_embeds, images_of, recorded_decoder_inputs
from tiny_checkpoints import TRANSFORMERS_5, build_model, image_tokens, make_inputs

from transformers_agci import attach
from transformers_agci.method.handle import current_handle

pytestmark = pytest.mark.filterwarnings("ignore")


def same_as_stock_fails(stock: Callable[[], Any], ours: Callable[[], Any]) -> Any:
    """The result of `ours`, or the test is over: stock raised, and ours raised the same kind of error."""
    try:
        stock()
    except Exception as error:
        with pytest.raises(type(error)):
            ours()
        pytest.skip(f"stock itself fails here: {type(error).__name__}")
    return ours()


def generate(model: Any, inputs: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, **settings)


def test_static_cache(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    handle = attach(model, 0.0)
    assert torch.equal(generate(model, inputs), generate(model, inputs, cache_implementation="static"))
    handle.lam = 1.0
    with recorded_decoder_inputs(model) as dynamic:
        tokens = generate(model, inputs)
    with recorded_decoder_inputs(model) as static:
        assert torch.equal(generate(model, inputs, cache_implementation="static"), tokens)
    assert handle.injections == 2
    for expected, seen in zip(dynamic, static, strict=True):
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_second_turn_on_the_same_cache(family: str, model: Any) -> None:
    """An image in the first turn, text in the second: the logits are those of the whole conversation at once."""
    inputs = make_inputs(family, model)
    ids = inputs["input_ids"]
    more = torch.randint(20, 200, (1, 5), generator=torch.Generator().manual_seed(3))
    whole = inputs | {"input_ids": torch.cat([ids, more], dim=1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], dim=1)

    def second_turn() -> torch.Tensor:
        with torch.no_grad():
            first = model(**inputs, use_cache=True)
            return model(input_ids=more, **{CACHE: first[CACHE]}).logits

    def at_once() -> torch.Tensor:
        with torch.no_grad():
            return model(**whole).logits[:, ids.shape[1] :]

    handle = attach(model, 0.0)
    stock_second, stock = second_turn(), at_once()
    handle.lam = 1.0
    second = second_turn()
    assert handle.injections == 1
    if not TRANSFORMERS_5 and family.startswith("qwen"):  # stock counts the positions of a second turn wrongly
        assert (stock_second - stock).abs().max() > 1e-5
        return
    torch.testing.assert_close(stock_second, stock, atol=1e-5, rtol=0)
    torch.testing.assert_close(second, at_once(), atol=1e-5, rtol=0)
    assert (second - stock).abs().max() > 1e-4


def test_image_in_the_second_turn(family: str, model: Any) -> None:
    first, second = make_inputs(family, model), make_inputs(family, model, seed=1)
    shown = images_of(second["input_ids"], model.config.image_token_id, image_tokens(family))
    del second["attention_mask"]
    handle = attach(model, 1.0)
    with torch.no_grad():
        cache = model(**first, use_cache=True)[CACHE]

        def turn() -> None:
            model(**second, **{CACHE: copy.deepcopy(cache)})

        def ours() -> None:
            handle.lam = 1.0
            turn()

        def stock() -> None:
            handle.lam = 0.0
            turn()

        with recorded_decoder_inputs(model, before_injection=True) as before, recorded_decoder_inputs(model) as after:
            same_as_stock_fails(stock, ours)
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(after[1].double(), expected_embeds(before[1], shown, 1.0), atol=1e-5, rtol=0)
    assert handle.injections == 2


def test_assisted_decoding(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    handle = attach(model, 0.0)
    assistant = copy.deepcopy(model)
    current_handle(assistant).detach()

    def ours() -> torch.Tensor:
        handle.lam = 1.0
        return generate(model, inputs, assistant_model=assistant)

    assisted = same_as_stock_fails(lambda: generate(model, inputs, assistant_model=assistant), ours)
    assert handle.injections == 1
    assert torch.equal(assisted, generate(model, inputs))


def test_candidates_that_hold_image_tokens(family: str, model: Any) -> None:
    """Prompt lookup proposes pieces of the prompt as an answer, image tokens among them: no image was lost there."""
    inputs = make_inputs(family, model)
    image = model.config.image_token_id
    candidates = torch.tensor([[20, image, image]])
    handle = attach(model, 0.0)

    def verify() -> torch.Tensor:
        with torch.no_grad():
            cache = transformers.DynamicCache(config=model.config)  # generate makes it before the first call
            model(**inputs, **{CACHE: cache})
            return model(input_ids=candidates, **{CACHE: cache}).logits

    def ours() -> torch.Tensor:
        handle.lam = 1.0
        return verify()

    assert torch.isfinite(same_as_stock_fails(verify, ours)).all()
    assert handle.injections == 1
    with pytest.raises(ValueError, match="no images came with it"):
        model(input_ids=inputs["input_ids"])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("order", ["attach first", "dispatch first"])
@pytest.mark.parametrize("kind", ["cpu_offload", "disk"])
def test_offloading(family: str, model: Any, kind: str, order: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    inputs = make_inputs(family, model)
    plain = copy.deepcopy(model)
    reference = attach(plain, 1.0)
    with torch.no_grad():
        expected = plain(**inputs).logits
        reference.lam = 0.0
        stock = plain(**inputs).logits

    def offload(one: Any) -> None:
        if kind == "cpu_offload":
            accelerate.cpu_offload(one, execution_device=torch.device("cpu"))
        else:
            accelerate.disk_offload(one, tmp_path, execution_device=torch.device("cpu"))

    without_agci = copy.deepcopy(model)
    offload(without_agci)
    if order == "attach first":
        handle = attach(model, 1.0)
        offload(model)
    else:
        offload(model)
        handle = attach(model, 1.0)
    with torch.no_grad():
        # Gemma3n moves its pixels to where the weights are: to the meta device, while they are offloaded.
        logits = same_as_stock_fails(lambda: without_agci(**inputs), lambda: model(**inputs).logits)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert handle.injections == 1
        handle.lam = 0.0
        torch.testing.assert_close(model(**inputs).logits, stock, atol=1e-6, rtol=0)
    assert (expected - stock).abs().max() > 1e-4


@pytest.mark.parametrize("order", ["attach first", "dispatch first"])
def test_dispatch_over_a_device_map(order: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build_model("qwen2_5_vl")
    inputs = make_inputs("qwen2_5_vl", model)
    plain = copy.deepcopy(model)
    attach(plain, 1.0)
    parts = {name: "cpu" for name, _ in model.model.named_children()}
    device_map = {f"model.{name}": place for name, place in parts.items()} | {"lm_head": "cpu"}
    steps = [lambda: attach(model, 1.0), lambda: accelerate.dispatch_model(model, device_map, force_hooks=True)]
    for step in steps if order == "attach first" else reversed(steps):
        step()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=1e-5, rtol=0)
    assert current_handle(model).injections == 1


def test_suspended_is_stock(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    with torch.no_grad():
        stock = model(**inputs).logits
        handle = attach(model, 1.0)
        one = model(**inputs).logits
        with handle.suspended():
            assert torch.equal(model(**inputs).logits, stock)
        assert torch.equal(model(**inputs).logits, one)
    assert handle.injections == 2
