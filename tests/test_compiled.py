"""torch.compile: attach before or after the first compiled call, toggle, detach."""

from typing import Any

import pytest
import torch
from decoder_inputs import CACHE
from tiny_checkpoints import build_model, make_inputs

from transformers_agci import attach
from transformers_agci.method.compiled_graphs import forget_graphs_of

pytestmark = [
    pytest.mark.slow,  # tracing takes a minute on a busy machine
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FAMILIES = ["llava", "qwen2_5_vl"]


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch.compiler.reset()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    made = build_model(request.param)
    made.inputs = make_inputs(request.param, made, batch=2)
    return made


def logits(model: Any, call: Any = None) -> torch.Tensor:
    with torch.no_grad():
        return (model if call is None else call)(**model.inputs).logits


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5)


def test_attach_first_then_toggle(model: Any) -> None:
    stock = logits(model)
    handle = attach(model, 1.0)
    one = logits(model)
    handle.lam = 0.5
    half = logits(model)
    assert not close(stock, half)
    assert not close(half, one)
    compiled = torch.compile(model, backend="eager")
    handle.injections = 0
    assert close(logits(model, compiled), half)
    handle.lam = 0.0
    assert close(logits(model, compiled), stock)
    handle.lam = 1.0
    assert close(logits(model, compiled), one)
    assert handle.injections == 4
    handle.detach()
    assert close(logits(model, compiled), stock)


def test_attach_after_a_compiled_call(model: Any) -> None:
    compiled = torch.compile(model, backend="eager")
    stock = logits(model, compiled)
    handle = attach(model, 0.5)
    half = logits(model)
    assert not close(half, stock)
    assert close(logits(model, compiled), half)
    assert handle.injections == 4


def test_another_model_of_a_compiled_class() -> None:
    """torch would use the first model's graph, which has no hooks, for the second one."""
    first, second = build_model("llava"), build_model("llava", seed=1)
    first.inputs = second.inputs = make_inputs("llava", first, batch=2)
    compiled_first, compiled_second = (torch.compile(one, backend="eager") for one in (first, second))
    stock = logits(first, compiled_first)
    handle = attach(second, 0.5)
    half = logits(second)
    for _ in range(2):
        assert close(logits(second, compiled_second), half)
        assert close(logits(first, compiled_first), stock)
    assert handle.injections == 6


def test_only_graphs_of_the_class_are_forgotten() -> None:
    other = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    other(torch.zeros(1, 2))
    model = build_model("llava")
    assert not forget_graphs_of(model.model)
    model.inputs = make_inputs("llava", model)
    logits(model, torch.compile(model, backend="eager"))
    assert forget_graphs_of(model.model)
    assert not forget_graphs_of(model.model)


def test_graph_of_a_detached_handle_is_stock() -> None:
    """Also where detach restores a key above 0."""
    model = build_model("llava")
    model.inputs = make_inputs("llava", model)
    stock = logits(model)
    model.config.global_context_broadcast_lambda = 0.5
    handle = attach(model, 1.0)
    compiled = torch.compile(model, backend="eager")
    assert not close(logits(model, compiled), stock)
    handle.detach()
    assert model.config.global_context_broadcast_lambda == 0.5
    assert close(logits(model, compiled), stock)


# --- whole graphs --------------------------------------------------------------------------------------------------

WHOLE = ["gemma3n", "internvl", "llava"]  # stock's own forward breaks the graphs of the other three


@pytest.mark.parametrize("family", WHOLE)
def test_lambda_zero_leaves_one_graph(family: str) -> None:
    model = build_model(family)
    inputs = make_inputs(family, model)
    with torch.no_grad():
        stock = model(**inputs, use_cache=False).logits
        attach(model, 0.0)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(**inputs, use_cache=False).logits, stock)


@pytest.mark.parametrize("family", WHOLE)
def test_strict_export_at_lambda_zero(family: str) -> None:
    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            return self.model(**inputs, use_cache=False).logits

    model = build_model(family)
    inputs = make_inputs(family, model)
    with torch.no_grad():
        stock = model(**inputs, use_cache=False).logits
        attach(model, 0.0)
        exported = torch.export.export(Logits(model), (), kwargs=inputs, strict=True)
        torch.testing.assert_close(exported.module()(**inputs), stock)


def test_decoding_steps_are_one_graph_at_any_lambda() -> None:
    model = build_model("llava")
    model.inputs = make_inputs("llava", model)
    attach(model, 0.5)
    step = torch.tensor([[21]])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        caches = [model(**model.inputs, use_cache=True)[CACHE] for _ in range(2)]
        expected = model(input_ids=step, **{CACHE: caches[0]}).logits
        assert close(compiled(input_ids=step, **{CACHE: caches[1]}).logits, expected)


@pytest.mark.parametrize("order", ["attach first", "compile first"])
def test_compiled_decoder(order: str) -> None:
    model = build_model("llava")
    model.inputs = make_inputs("llava", model)
    handle = attach(model, 0.5)
    half = logits(model)
    if order == "compile first":
        handle.detach()
    model.model.language_model.compile(backend="eager")
    if order == "compile first":
        logits(model)
        handle = attach(model, 0.5)
    handle.injections = 0
    assert close(logits(model), half)
    assert handle.injections == 1
