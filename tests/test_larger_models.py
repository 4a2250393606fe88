"""The config key of models that hold a served one: the Omni models their thinker, ColPali its PaliGemma.

The key may stand at the top of config.json, where `agci set-lambda` writes it, or in the part of the served model.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_families import TEXT, TINY, Batch, make_batch

from transformers_agci import LAMBDA_KEY, attach
from transformers_agci.cli import main
from transformers_agci.families import find_vlm
from transformers_agci.method import autoload
from transformers_agci.method.handle import current_handle
from transformers_agci.method.rivals.handle import current_rival

pytestmark = pytest.mark.filterwarnings("ignore")

# model class -> the name of the served part in its config, and the served family
LARGER = {
    "Qwen2_5Omni": ("thinker_config", "qwen2_5_omni_thinker"),
    "Qwen3OmniMoe": ("thinker_config", "qwen3_omni_moe_thinker"),
    "ColPali": ("vlm_config", "paligemma"),
}
larger = pytest.mark.parametrize("name", LARGER)


@pytest.fixture(autouse=True)
def _active(caplog: pytest.LogCaptureFixture) -> None:
    autoload.activate()
    autoload._warned.clear()
    caplog.set_level(logging.INFO, logger="transformers_agci")


def class_of(name: str) -> Any:
    return getattr(transformers, f"{name}{'ForRetrieval' if name == 'ColPali' else 'ForConditionalGeneration'}")


def checkpoint(name: str, folder: Path, top: float | None = None, nested: float | None = None) -> Path:
    """A tiny model of the larger class; the key at the top and in the part, None: not there."""
    part, family = LARGER[name]
    more = {"embedding_dim": 8} if name == "ColPali" else {"enable_audio_output": False}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{part: TINY[family].config().to_dict()}, **more)
    class_of(name)(config).save_pretrained(folder)
    torch.save({}, folder / "spk_dict.pt")
    written = json.loads((folder / "config.json").read_text())
    if top is not None:
        written[LAMBDA_KEY] = top
    if nested is not None:
        written[part][LAMBDA_KEY] = nested
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def load(name: str, folder: Path) -> Any:
    return class_of(name).from_pretrained(folder, attn_implementation="eager").eval()


def batch_of(name: str) -> Batch:
    return make_batch(TINY[LARGER[name][1]], [[TEXT, "plain", TEXT], ["plain", "plain", TEXT]])


@torch.no_grad()
def output(name: str, model: Any, batch: Batch) -> torch.Tensor:
    if name == "ColPali":
        given = ("input_ids", "attention_mask", "pixel_values")
        return model(**{key: batch.inputs[key] for key in given}).embeddings
    return model.thinker(**batch.inputs).logits


def on_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "transformers_agci"]


@pytest.mark.sampled(3)
@larger
@pytest.mark.parametrize(("top", "nested"), [(0.5, None), (None, 0.5), (0.5, 0.5), (0.5, 0.2), (0.5, 0.0)])
def test_key_is_served_wherever_it_stands(
    name: str, top: float | None, nested: float | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(name, tmp_path, top, nested)
    caplog.clear()
    model = load(name, folder)
    messages = on_messages(caplog)
    assert len([message for message in messages if "AGCI is on: lambda 0.5 " in message]) == 1
    assert not [message for message in messages if "does nothing" in message]
    assert bool([message for message in messages if "the top level wins" in message]) == (nested in (0.2, 0.0))
    handle, batch = current_handle(model), batch_of(name)
    assert (handle.lam, handle.from_config, getattr(model, LAMBDA_KEY)) == (0.5, True, 0.5)
    assert getattr(model.config, LAMBDA_KEY) == 0.5
    changed = output(name, model, batch)
    assert handle.injections == 3
    handle.detach()
    stock = output(name, model, batch)
    attach(model, 0.5)
    assert torch.equal(output(name, model, batch), changed)
    assert not torch.equal(stock, changed)


@larger
def test_position_balance_at_the_top_of_the_file(name: str, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"position_balance": True}))
    rival = current_rival(load(name, folder))
    assert rival is not None
    assert (rival.method, rival.strength, rival.from_config) == ("bapa", 1, True)


@larger
def test_key_is_kept_when_saved(name: str, tmp_path: Path) -> None:
    model = load(name, checkpoint(name, tmp_path / "a", top=0.5))
    setattr(model.config, LAMBDA_KEY, 0.7)
    assert current_handle(model).lam == 0.7
    model.save_pretrained(tmp_path / "b")
    torch.save({}, tmp_path / "b" / "spk_dict.pt")
    assert current_handle(load(name, tmp_path / "b")).lam == 0.7


@larger
def test_key_set_on_the_config_of_a_loaded_model(name: str, tmp_path: Path) -> None:
    model = load(name, checkpoint(name, tmp_path))
    assert current_handle(model) is None
    assert not hasattr(model.config, LAMBDA_KEY)
    setattr(model.config, LAMBDA_KEY, 0.25)
    output(name, model, batch_of(name))
    assert (current_handle(model).lam, current_handle(model).injections) == (0.25, 3)


@pytest.mark.sampled(3)
@larger
@pytest.mark.parametrize(
    ("lam", "what"),
    [
        (None, "config"),
        (None, "config, then key"),
        (None, "part"),
        (0.25, "config"),
        (0.25, "config, then key"),
        (0.25, "part"),
    ],
)
def test_replaced_config(name: str, lam: float | None, what: str, tmp_path: Path) -> None:
    """The larger model is given another config, or another part in its config; with AGCI on before, and without."""
    part = LARGER[name][0]
    model = load(name, checkpoint(name, tmp_path, nested=lam))
    batch = batch_of(name)
    before = output(name, model, batch)
    other = copy.deepcopy(model.config)
    if what != "config, then key":
        setattr(getattr(other, part), LAMBDA_KEY, 0.7)
    if what == "part":
        setattr(model.config, part, getattr(other, part))
    else:
        model.config = other
    if what == "config, then key":
        setattr(model.config, LAMBDA_KEY, 0.7)
    changed = output(name, model, batch)
    assert not torch.equal(changed, before)
    assert current_handle(model).lam == getattr(model, LAMBDA_KEY) == 0.7
    setattr(model, LAMBDA_KEY, 0.0)
    assert getattr(model.config, LAMBDA_KEY) == 0.0
    assert torch.equal(output(name, model, batch), before) == (lam is None)


@pytest.mark.parametrize("name", ["Qwen2_5Omni", "Qwen3OmniMoe"])
def test_thinker_loaded_alone(name: str, tmp_path: Path) -> None:
    """It is given its own part of the config only, the key at the top of the file with it."""
    thinker = getattr(transformers, f"{name}ThinkerForConditionalGeneration")
    model = thinker.from_pretrained(checkpoint(name, tmp_path, top=0.5), attn_implementation="eager").eval()
    with torch.no_grad():
        model(**batch_of(name).inputs)
    assert (current_handle(model).lam, current_handle(model).injections) == (0.5, 3)


@larger
def test_set_lambda(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(name, tmp_path / "a", nested=0.2)
    assert main(["set-lambda", str(folder), "0.5"]) == 0
    assert f"{LAMBDA_KEY}: 0.2 -> 0.5" in capsys.readouterr().out
    written = json.loads((folder / "config.json").read_text())
    assert written[LAMBDA_KEY] == 0.5
    assert LAMBDA_KEY not in written[LARGER[name][0]]
    assert current_handle(load(name, folder)).lam == 0.5
    assert main(["set-lambda", str(folder), "0", "--output", str(tmp_path / "b")]) == 0
    torch.save({}, tmp_path / "b" / "spk_dict.pt")
    assert current_handle(load(name, tmp_path / "b")).lam == 0


@larger
def test_commands_say_what_is_within(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(name, tmp_path)
    assert main(["self-check", str(folder)]) == 2
    assert f"({LARGER[name][1]}) within it is" in capsys.readouterr().err


def test_models_that_merge_by_themselves_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ColQwen2 holds a Qwen2-VL, and never gives it the images."""
    (tmp_path / "config.json").write_text('{"model_type": "colqwen2", "vlm_config": {"model_type": "qwen2_vl"}}')
    assert main(["set-lambda", str(tmp_path), "0.5"]) == 2
    assert "merges the image features into the text itself" in capsys.readouterr().err


@torch.no_grad()
def test_shieldgemma_is_served_as_it_is_published(tmp_path: Path) -> None:
    """A Gemma 3 within a classifier, which keeps the config and answers two logits."""
    family = TINY["shieldgemma2"]
    config = family.config()
    config.yes_token_index, config.no_token_index = 5, 6
    batch = make_batch(family, [[TEXT, "plain", TEXT], ["plain", "plain", TEXT]])
    torch.manual_seed(0)
    model = transformers.ShieldGemma2ForImageClassification(config).eval()
    torch.nn.init.normal_(find_vlm(model).multi_modal_projector.mm_input_projection_weight)  # zero when it is made
    stock = model(**batch.inputs).logits
    handle = attach(model, 0.5)
    changed = model(**batch.inputs).logits
    assert handle.injections == 3
    assert not torch.equal(changed, stock)
    model.save_pretrained(tmp_path)
    loaded = transformers.ShieldGemma2ForImageClassification.from_pretrained(tmp_path).eval()
    assert current_handle(loaded).from_config
    torch.testing.assert_close(loaded(**batch.inputs).logits, changed, atol=1e-5, rtol=0)
