"""The self-check passes on a sound model, and each of its checks fails on a model sabotaged for it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoints import FAMILIES, build_model, checkpoint, make_inputs
from tiny_families import BLIND, TEXT, TINY, TinyFamily, make_batch
from tiny_processor import TinyProcessor

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, InputError, attach, self_check
from transformers_agci.experiments import checkpoint_check
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.load import LoadedModel, LoadOptions
from transformers_agci.method import autoload, embeds_update, hooks, injection
from transformers_agci.method.handle import Handle, current_handle
from transformers_agci.method.self_check import Check, SelfCheck
from transformers_agci.method.stored_weights import vision_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*generation flags.*"),
]


@pytest.fixture(autouse=True)
def _hook_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers_agci_startup", ModuleType("transformers_agci_startup"))
    monkeypatch.delenv("TRANSFORMERS_AGCI", raising=False)
    autoload.activate()


def failed(result: SelfCheck) -> list[str]:
    return [row.name for row in result.rows if row.passed is False]


def row(result: SelfCheck, name: str) -> Check:
    return next(row for row in result.rows if row.name == name)


@pytest.fixture
def model() -> Any:
    return build_model("llava")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))
def test_sound_model_of_every_family(family: TinyFamily) -> None:
    """With a tiled image: what a family hands over besides tensors, or in a strip, is doubled for the batch mates."""
    if family.model_type in BLIND:
        pytest.skip("before transformers 5.18 its images do not come in")
    batch = make_batch(family, [[TEXT, "tiled", "plain", TEXT]])
    result = self_check(family.build(), batch.inputs, images=2)
    assert failed(result) == [], str(result)
    assert row(result, "once per image").figure == 2


@pytest.fixture
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """What the command loads: the tiny model of a family behind the stand-in for its processor."""
    family = TINY[request.param]
    stands_in = LoadedModel(
        family.build(), TinyProcessor(family), SUPPORTED_FAMILIES[request.param], torch.device("cpu"), {}, {}
    )
    monkeypatch.setattr(checkpoint_check, "load", lambda options: stands_in)
    return stands_in


@pytest.mark.slow
@pytest.mark.parametrize("loaded", ["unlimited_ocr"], indirect=True)
def test_the_command_takes_lists_from_a_processor(loaded: LoadedModel) -> None:
    """The crops of Unlimited-OCR are counted in lists."""
    result = checkpoint_check.check_checkpoint(LoadOptions("x"))
    assert failed(result) == [], str(result)
    assert [found.passed for found in result.rows[-2:]] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("loaded", ["vipllava"], indirect=True)
def test_prompts_that_cannot_be_served_are_no_traceback(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> SelfCheck:
        raise ValueError("AGCI cannot tell\nwhich runs")

    monkeypatch.setattr(checkpoint_check, "check_images", refuses)
    result = checkpoint_check.check_checkpoint(LoadOptions("x"))
    assert failed(result) == ["two adjacent images", "a long image"]
    assert row(result, "a long image").explanation == "AGCI cannot tell which runs"
    monkeypatch.setattr(checkpoint_check, "self_check", refuses)
    with pytest.raises(InputError, match="AGCI cannot tell which runs"):
        checkpoint_check.check_checkpoint(LoadOptions("x"))


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_model(family: str, tmp_path: Path) -> None:
    folder = checkpoint(family, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {LAMBDA_KEY: 0.75}))
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).train()
    result = self_check(model, make_inputs(family, model, batch=2))
    assert failed(result) == []
    assert result.passed
    assert [row.passed for row in result.rows] == [True] * 7
    assert result.lam == 0.75
    assert row(result, "lambda 0 is stock").figure == 0
    assert row(result, "once per image").figure == 2
    assert 0 < row(result, "decoder input is the formula").figure < 1e-6
    assert model.training
    assert (current_handle(model).lam, current_handle(model).from_config) == (0.75, True)


def test_model_without_agci_is_left_without(model: Any) -> None:
    result = self_check(model, make_inputs("llava", model))
    assert result.passed
    assert result.lam == 0.5
    assert [row.name for row in result.rows if row.passed is None] == ["config key served", "no vision weight missing"]
    assert current_handle(model) is None
    assert not hasattr(model.config, LAMBDA_KEY)


def test_bfloat16_and_inner_model() -> None:
    model = build_model("qwen2_5_vl").to(torch.bfloat16)
    inputs = make_inputs("qwen2_5_vl", model)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    assert failed(self_check(model, inputs)) == []
    inner = build_model("qwen2_5_vl").model
    assert failed(self_check(inner, make_inputs("qwen2_5_vl", inner))) == []


def test_table(model: Any) -> None:
    text = str(self_check(model, make_inputs("llava", model)))
    assert text.startswith("AGCI self-check: LLaVA-v1.5, lambda 0.5\ncheck ")
    assert text.endswith("all checks passed that could be made, 2 of 7 could not (-)")
    assert len(text.splitlines()) == 1 + 1 + 7 + 1


# --- sabotage ------------------------------------------------------------------------------------------------------


def test_no_start_up_hook(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs("llava", model)
    monkeypatch.delitem(sys.modules, "transformers_agci_startup")
    assert failed(self_check(model, inputs)) == ["start-up hook active"]


def test_switched_off(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_AGCI", "0")
    result = self_check(model, make_inputs("llava", model))
    assert failed(result) == ["start-up hook active"]
    assert not result.passed
    assert str(result).endswith("1 failed")


def test_key_that_nobody_serves(model: Any) -> None:
    vars(model.config)[LAMBDA_KEY] = 0.5  # behind the back of the property that would serve it
    assert failed(self_check(model, make_inputs("llava", model))) == ["config key served"]


def test_random_vision_weight(tmp_path: Path) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint("llava", tmp_path))
    weight = next(w for name, w in model.named_parameters() if "vision_tower" in name and w.ndim > 1)
    with torch.no_grad():
        weight.normal_()
    result = self_check(model, make_inputs("llava", model))
    assert failed(result) == ["no vision weight missing"]
    assert row(result, "no vision weight missing").figure == 1


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("qianfan_ocr", "layers.1.attention.k_proj.weight"),  # query, key and value in one tensor of the files
        ("got_ocr2", "neck.conv1.weight"),  # as it is there; a 1 x 1 convolution, of which one number is no row
        pytest.param("dots3_note", "blocks.1.mlp.experts.down_proj", marks=pytest.mark.slow),  # apart there
    ],
)
def test_weights_that_the_files_keep_otherwise(family: str, part: str, tmp_path: Path) -> None:
    if family not in TINY:
        pytest.skip(f"this transformers has no {family}")
    TINY[family].build().save_pretrained(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = make_batch(TINY[family], [[TEXT, "plain", TEXT]]).inputs
    assert row(self_check(model, inputs, images=1), "no vision weight missing").passed
    with torch.no_grad():
        weight = model.get_parameter(f"model.vision_tower.{part}")
        weight.copy_(weight.flip(*range(weight.ndim)))  # every number is in the files, no row is
    found = row(self_check(model, inputs, images=1), "no vision weight missing")
    assert (found.passed, found.figure) == (False, 1)


@pytest.mark.parametrize("family", ["smolvlm", "emu3", "qwen2_5_omni_thinker", "llava"])
def test_the_decoders_weights_are_no_vision_weights(family: str) -> None:
    if family not in TINY:
        pytest.skip(f"this transformers has no {family}")
    vlm: Any = find_vlm(TINY[family].build())
    seen = {id(weight) for weight in vision_weights(vlm).values()}
    text = {
        id(weight) for part in (decoder_of(vlm), getattr(vlm, "lm_head", None)) if part for weight in part.parameters()
    }
    assert seen and not seen & text


def sabotage_decoder_hook(monkeypatch: pytest.MonkeyPatch, sabotage: Callable[..., Any]) -> None:
    """`sabotage(handle, embeds, stock)` takes the place of the decoder's hook; `stock` is the real one."""
    real = hooks.before_decoder

    def replaced(decoder: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        handle = vars(decoder)[hooks.HANDLE]
        if handle._suspended:
            return None
        changed = sabotage(handle, kwargs["inputs_embeds"], lambda: real(decoder, args, kwargs))
        return changed if changed is None or isinstance(changed, tuple) else (args, kwargs | {"inputs_embeds": changed})

    monkeypatch.setattr(hooks, "before_decoder", replaced)
    monkeypatch.setattr(hooks, "_OURS", (*hooks._OURS, replaced))


def test_hook_that_does_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handle, "inject", lambda handle, embeds, images: embeds)
    names = failed(self_check(model, make_inputs("llava", model)))
    assert names == ["once per image", "decoder input is the formula"]


def test_hook_that_changes_stock_at_lambda_zero(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage_decoder_hook(monkeypatch, lambda handle, embeds, stock: stock() if handle.lam else embeds + 1e-7)
    assert failed(self_check(model, make_inputs("llava", model))) == ["lambda 0 is stock"]


def test_wrong_strength(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = injection.METHODS["agci"]
    wrong = {"agci": lambda tokens, lam, g: real(tokens, 1.001 * lam, g)}
    monkeypatch.setattr(embeds_update, "injection_of", wrong.get)
    assert failed(self_check(model, make_inputs("llava", model))) == ["decoder input is the formula"]


def test_injection_at_every_step(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def also_while_decoding(handle: Handle, embeds: torch.Tensor, stock: Callable[[], Any]) -> Any:
        handle.injections += embeds.shape[1] == 1
        return stock()

    sabotage_decoder_hook(monkeypatch, also_while_decoding)
    result = self_check(model, make_inputs("llava", model))
    assert failed(result) == ["once per image"]
    assert (row(result, "once per image").figure, row(result, "once per image").tolerance) == (2, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_over_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code's mean: right for one image alone, wrong as soon as a mate joins."""
    real = Handle.inject

    def over_the_batch(self: Handle, *arguments: Any) -> Any:
        self.scope = "batch"
        return real(self, *arguments)

    model = build_model(family)
    inputs = make_inputs(family, model)
    assert failed(self_check(model, inputs)) == []
    monkeypatch.setattr(Handle, "inject", over_the_batch)
    assert failed(self_check(model, inputs)) == ["batch mates do not matter"]


def test_text_only_inputs_are_an_error(model: Any) -> None:
    inputs = make_inputs("llava", model)
    text = {"input_ids": torch.tensor([[20, 21, 22]])}
    with pytest.raises(ValueError, match="no image"):
        self_check(model, text)
    assert current_handle(model) is None
    handle = attach(model, 0.5)
    with pytest.raises(ValueError, match="no image"):
        self_check(model, text)
    assert (handle.lam, handle.attached) == (0.5, True)
    assert self_check(model, inputs).passed
