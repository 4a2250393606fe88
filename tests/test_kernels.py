"""Kernels on the layers of a model: equal to stock, taken off without a trace, left off where they do not fit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import FAMILIES, build_model, make_inputs

from transformers_agci.errors import InputError
from transformers_agci.inference import kernels
from transformers_agci.inference.attention_plans import VaryingLengths
from transformers_agci.inference.host_values import HostValues
from transformers_agci.inference.kernels import Disagreement, pad_widths, use_kernels
from transformers_agci.inference.last_positions import is_narrowed, last_mlp
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.quick import ALL, chosen
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**make_inputs(model.config.model_type, model, batch=2)).logits


def forwards(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_agree_or_stay_off(family: str) -> None:
    model = build_model(family)
    stock, before = logits(model), forwards(model)
    made = use_kernels(model, ["norms"])
    assert torch.allclose(logits(model), stock, atol=1e-5)
    assert (made.on == ("norms",)) == (forwards(model) != before)
    assert made.on or "differs" in dict(made.reasons)["norms"] or "no RMSNorm" in dict(made.reasons)["norms"]
    made.remove()
    assert torch.equal(logits(model), stock)
    assert forwards(model) == before


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_norms_in_one_call(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(family)
    called = []
    real = torch.nn.functional.rms_norm
    monkeypatch.setattr(torch.nn.functional, "rms_norm", lambda *args: called.append(1) or real(*args))
    made = use_kernels(model, ["norms"])
    called.clear()
    logits(model)
    assert called
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.model.language_model.norm.weight.zero_()
    assert not logits(copied).any()
    assert logits(model).any()
    made.remove()


def test_a_norm_whose_squares_overflow_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16: 300 * 300 is infinite. Values around 1 do not show it."""

    def squared_in_half(x: torch.Tensor, shape: Any, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        variance = (x * x).mean(-1, keepdim=True)
        return weight * x * (variance + epsilon).rsqrt()

    monkeypatch.setattr(torch.nn.functional, "rms_norm", squared_in_half)
    made = use_kernels(build_model("qwen2_5_vl").to(torch.float16), ["norms"])
    assert not made.on
    assert "differs from transformers' own" in dict(made.reasons)["norms"]


def test_a_norm_that_differs_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "rms_norm", lambda x, *_: 2 * x)
    model = build_model("qwen2_5_vl")
    made = use_kernels(model, ["norms"])
    assert not made.on
    assert "differs from transformers' own" in dict(made.reasons)["norms"]
    assert not forwards(model)


def test_widths_are_padded_exactly() -> None:
    """3,420 is no multiple of 8; nor is the 22 here."""
    model = build_model("qwen2_5_vl")
    layers = [block.mlp for block in model.model.visual.blocks]
    for mlp in layers:
        for name in ("gate_proj", "up_proj"):
            linear = getattr(mlp, name)
            linear.weight, linear.bias = (torch.nn.Parameter(part.data[:22]) for part in (linear.weight, linear.bias))
        mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight.data[:, :22])
    stock, shapes = logits(model), {name: value.shape for name, value in model.state_dict().items()}
    remove = pad_widths(layers)
    assert {mlp.gate_proj.weight.shape[0] for mlp in layers} == {64}
    assert {mlp.down_proj.in_features for mlp in layers} == {64}
    assert torch.allclose(logits(model), stock, atol=1e-6)
    saved = model.state_dict()
    assert {name: value.shape for name, value in saved.items()} == shapes  # as config.json says
    assert torch.equal(saved["model.visual.blocks.0.mlp.down_proj.weight"], layers[0].down_proj.weight[:, :22])
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(Disagreement, match="64 is aligned already"):
        pad_widths(layers)
    remove()
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert torch.equal(logits(model), stock)


@pytest.mark.slow
def test_compiled_forwards_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would compile, traced here: the same values, and one compilation for all layers of a kind."""
    monkeypatch.setattr(kernels, "COMPILER", "aot_eager")
    monkeypatch.setattr(kernels, "_need_gpu", lambda device: None)
    torch._dynamo.reset()
    model = build_model("qwen2_5_vl")
    stock = logits(model)
    attention = use_segments(model)
    made = use_kernels(model, ["rotary", "activation"])
    assert made.on == ("rotary", "activation"), made.reasons
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.inference_mode():  # as in a run: nothing is compiled there that the comparison has not compiled
        ours = model(**make_inputs(model.config.model_type, model, batch=2)).logits
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0
    assert torch.allclose(ours, stock, atol=1e-5)
    made.remove()
    attention.remove()
    assert torch.equal(logits(model), stock)


def test_a_loop_over_segments_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """144 windows of an image of 840x840 would be unrolled, anew for every size of an image."""
    monkeypatch.setattr(kernels, "_need_gpu", lambda device: None)
    monkeypatch.setattr(kernels, "_compile", lambda module: pytest.fail("compiled"))
    made = use_kernels(build_model("qwen2_5_vl"), ["rotary"])
    assert made.on == ()
    assert "one segment after the other" in dict(made.reasons)["rotary"]


@pytest.mark.gpu
def test_compiled_forwards_on_a_gpu() -> None:
    """What the compiler itself makes of them: on, equal within rounding, compiled once for all calls."""
    torch._dynamo.reset()
    model = build_model("qwen2_5_vl").to("cuda", torch.bfloat16)
    inputs = {
        name: value.to("cuda", torch.bfloat16 if value.is_floating_point() else None)
        for name, value in make_inputs("qwen2_5_vl", model, batch=2).items()
    }
    attention = use_segments(model)
    with torch.inference_mode():
        stock = model(**inputs).logits
        made = use_kernels(model, ["rotary", "activation"])
        assert made.on == ("rotary", "activation"), made.reasons
        ours = model(**inputs).logits
    assert float((ours - stock).abs().max() / stock.abs().max()) < 2e-2
    made.remove()
    attention.remove()


def test_a_compiler_that_fails_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(kernels, "COMPILER", broken)
    monkeypatch.setattr(kernels, "_need_gpu", lambda device: None)
    model = build_model("qwen2_5_vl")
    stock = logits(model)
    made = use_kernels(model, ["rotary", "activation"])
    assert not made.on
    assert "it raises" in dict(made.reasons)["activation"]
    assert torch.equal(logits(model), stock)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_mlp_computes_the_positions_that_are_asked_for(family: str) -> None:
    """The same logits from fewer rows; all rows where all logits, or the hidden states, are asked for."""
    model = build_model(family)
    inputs = make_inputs(family, model, batch=2)

    def ask(**options: Any) -> tuple[Any, int]:
        rows.clear()
        with torch.no_grad():
            return model(**inputs, **options), sum(rows)

    rows: list[int] = []
    mlp = last_mlp(model)
    hook = mlp.down_proj.register_forward_hook(lambda _, args, output: rows.append(output[..., 0].numel()))
    (stock, every), (two, _) = ask(logits_to_keep=1), ask(logits_to_keep=2)
    with_states = ask(output_hidden_states=True, logits_to_keep=1)[0].hidden_states[-1]
    before = forwards(model)  # transformers 4.57 puts some on that gather the hidden states
    made = use_kernels(model, ["last_positions"])
    assert made.on == ("last_positions",), made.reasons
    ours, computed = ask(logits_to_keep=1)
    assert (computed, every) == (2, inputs["input_ids"].numel())
    assert torch.allclose(ours.logits, stock.logits, atol=1e-5)
    ours, computed = ask(logits_to_keep=2)
    assert computed == 4
    assert torch.allclose(ours.logits, two.logits, atol=1e-5)
    assert ask()[1] == ask(logits_to_keep=torch.tensor([0]))[1] == every
    assert torch.equal(ask(output_hidden_states=True, logits_to_keep=1)[0].hidden_states[-1], with_states)
    for config in (model.config, model.config.get_text_config()):  # which of them is read depends on the version
        config.output_hidden_states = True
        assert ask(logits_to_keep=1)[1] == every
        config.output_hidden_states = False
    made.remove()
    hook.remove()
    assert not is_narrowed(model)
    assert torch.equal(ask(logits_to_keep=1)[0].logits, stock.logits)
    assert forwards(model) == before


def test_a_call_that_was_interrupted_narrows_no_other() -> None:
    """torch runs no hook behind a call that a Ctrl-C ends; a copy of the model knows nothing of the call."""
    model = build_model("qwen2_5_vl")
    inputs = make_inputs("qwen2_5_vl", model, batch=2)
    with torch.no_grad():
        stock = model.model(**inputs).last_hidden_state
        use_kernels(model, ["last_positions"])

        def ctrl_c(*_: Any) -> None:
            raise KeyboardInterrupt

        hook = model.model.language_model.norm.register_forward_pre_hook(ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs, logits_to_keep=1)
        hook.remove()
        assert torch.equal(model.model(**inputs).last_hidden_state, stock)
        copied = copy.deepcopy(model)
        last_mlp(copied).down_proj.weight.zero_()
        assert is_narrowed(copied)
        assert torch.equal(model.model(**inputs).last_hidden_state, stock)
        assert not torch.equal(copied.model(**inputs).last_hidden_state, stock)


def test_a_copy_of_compiled_layers_has_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COMPILER", "eager")
    mlp = build_model("qwen2_5_vl").model.language_model.layers[0].mlp
    kernels._compile(mlp)
    copied = copy.deepcopy(mlp)
    rows = torch.ones(2, 3, mlp.gate_proj.in_features)
    with torch.no_grad():
        copied.down_proj.weight.zero_()
        assert not copied(rows).any()
        assert mlp(rows).any()


@pytest.mark.parametrize("names", [["norms"], ["activation"], ["rotary"]], ids=lambda names: names[0])
def test_layers_that_cannot_be_tried_stay_as_they_are(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in eight bits, whose product with anything in eight bits raises: the model must load all the same."""
    monkeypatch.setattr(kernels, "_need_gpu", lambda device: None)
    model = build_model("qwen2_5_vl")
    attention = use_segments(model)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            eight = torch.nn.Parameter(parameter.data.to(torch.float8_e4m3fn), requires_grad=False)
            setattr(module, name, eight)
    made = use_kernels(model, names)
    assert not made.on
    assert "it raises" in dict(made.reasons)[names[0]]
    assert not forwards(model)
    attention.remove()
    assert as_matrix_product(model).reason == "its weights are in float8_e4m3fn"


def test_what_is_on_stands_in_the_notes(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = str(tiny_checkpoint("qwen2_5_vl"))
    loaded = load(LoadOptions(folder))
    assert "norms" in loaded.notes["kernels"]
    assert "on cpu" in loaded.notes["kernels_off_because"]["rotary"]
    assert not {"pinned", "host_values", "varying_lengths"} & set(loaded.notes["kernels"])  # nothing of them ran
    assert "it is for a GPU" in loaded.notes["kernels_off_because"]["pinned"]
    stock = load(LoadOptions(folder, kernels="stock", vision="stock"))
    assert stock.notes["kernels"] == []
    assert not forwards(stock.model)
    assert load(LoadOptions(folder, kernels="tails")).notes["kernels"] == ["first_token", "tails"]


def test_no_class_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything on that can be put on a model, its classes hold what they held."""
    monkeypatch.setattr(kernels, "_need_gpu", lambda device: None)
    monkeypatch.setattr(kernels, "_compile", lambda module: kernels._put_forward(module, type(module).forward))
    model = build_model("qwen2_5_vl")
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    before = {kind: dict(vars(kind)) for kind in classes}
    assert use_segments(model).backend != "stock"
    made = use_kernels(model, ["norms", "rotary", "activation"])
    assert made.on == ("norms", "rotary", "activation")
    with VaryingLengths(model), HostValues(model):
        logits(model)
        assert {kind: dict(vars(kind)) for kind in classes} == before


def test_names_of_ways() -> None:
    assert chosen("auto") == ALL
    assert chosen("norms, rotary") == {"norms", "rotary"}
    assert chosen("tails") == {"tails", "first_token"}  # alone it would do nothing
    with pytest.raises(InputError, match=r"'norm'; the names are norms, "):
        chosen("norm")
