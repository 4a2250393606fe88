"""The contract of attach on live models: LoRA, checkpointing, copies, saving, threads, and what is refused."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import (
    decoder_input,
    training_gradients,
)
from tiny_checkpoints import build_model, image_tokens, make_inputs, make_pixels

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, agci, attach
from transformers_agci.method import thread_state
from transformers_agci.method.handle import current_handle

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks by the old name
]


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


Change = Callable[[Any], None]


def attach_half(model: Any) -> None:
    attach(model, 0.5)


def detach(model: Any) -> None:
    handle = current_handle(model)
    assert handle is not None
    handle.detach()


def set_to(lam: float) -> Change:
    def change(model: Any) -> None:
        model.global_context_broadcast_lambda = lam

    return change


# lambda when the call begins -> what another thread does before the vision side runs, and behind the decoder
WITHIN: dict[str, tuple[float | None, Change, Change]] = {
    "turned on": (0.0, set_to(0.5), set_to(0.5)),
    "turned on and off": (0.0, set_to(0.5), set_to(0.0)),
    "turned off": (0.5, set_to(0.0), set_to(0.0)),
    "turned off and on": (0.5, set_to(0.0), set_to(0.5)),
    "attached": (None, attach_half, detach),
}


@pytest.mark.parametrize("event", WITHIN)
def test_lambda_changed_while_a_call_runs(family: str, model: Any, event: str) -> None:
    """As another thread may: the call goes on with what it began with, and is not refused."""
    begun, first, second = WITHIN[event]
    inputs = make_inputs(family, model)
    with torch.no_grad():
        of_lambda = {}
        for lam in (0.0, 0.5):
            with agci(model, lam):
                of_lambda[lam] = model(**inputs).logits
        assert not torch.equal(of_lambda[0.0], of_lambda[0.5])
        if begun is not None:
            attach(model, begun)
        changes = iter((first, second))
        tower = next(part for name, part in model.model.named_children() if name.startswith(("vis", "vision")))

        def change(*_: object) -> None:
            next(changes)(model)

        hooks = [
            part.register_forward_pre_hook(change, prepend=True)
            for part in (tower, model.model.language_model.layers[-1])
        ]
        assert torch.equal(model(**inputs).logits, of_lambda[begun or 0.0])
        assert next(changes, None) is None
        assert thread_state.is_idle()
        for hook in hooks:
            hook.remove()
        with agci(model, 0.5):
            assert torch.equal(model(**inputs).logits, of_lambda[0.5])


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
