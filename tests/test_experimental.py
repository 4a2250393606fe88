"""agci self-check --experimental: a model of no family is looked at, and nothing of it is changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_families import TEXT, TINY, make_batch

from transformers_agci.cli import main
from transformers_agci.method.experimental import explore

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("qwen2_vl", "Qwen"),
        ("aya_vision", "Aya"),
        ("idefics3", "Idefics3"),
        ("vipllava", "VipLLaVA"),
        ("cohere2_vision", "Command A"),
    ],
)
def test_it_finds_the_image_positions_from_the_features(family: str, rule: str) -> None:
    model = TINY[family].build()
    batch = make_batch(TINY[family], [[TEXT, "tiled", "plain", TEXT]])
    with torch.no_grad():
        stock = model(**batch.inputs).logits
    found = explore(model, batch.inputs, images=2)
    total = sum(len(places) for _, places in batch.images)
    assert f"at {total} positions" in str(found)
    assert "token ids there are [30]" in str(found)
    assert found.served
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs).logits, stock)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert "get_image_features" not in vars(model.model)


def test_a_model_without_the_place_is_said_to_have_none() -> None:
    model = torch.nn.Linear(2, 2)
    found = explore(model, {}, images=1)
    assert not found.served
    assert "Linear cannot be served" in str(found)


def test_the_command_looks_at_a_checkpoint(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint("llava")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["self-check", str(folder), "--experimental"]) == 0
    said = capsys.readouterr().out
    assert "LlavaModel merges image features and calls LlamaModel" in said or "merges image features" in said
    assert "nothing was written" in said
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.slow
def test_a_family_that_nobody_declared_from_end_to_end(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model_type that transformers knows, as after an upgrade, and AGCI does not: refused, then looked at."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.auto import configuration_auto, modeling_auto, processing_auto

    class UndeclaredConfig(LlavaConfig):
        model_type = "undeclared"

    class UndeclaredModel(LlavaForConditionalGeneration):
        config_class = UndeclaredConfig

    for mapping, key, value in (
        (configuration_auto.CONFIG_MAPPING, "undeclared", UndeclaredConfig),
        (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, UndeclaredConfig, UndeclaredModel),
        (processing_auto.PROCESSOR_MAPPING, UndeclaredConfig, LlavaProcessor),
    ):
        monkeypatch.setitem(mapping._extra_content, key, value)
    folder = shutil.copytree(tiny_checkpoint("llava"), tmp_path / "undeclared")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "undeclared"}
    (folder / "config.json").write_text(json.dumps(config))
    for words in (["self-check", str(folder)], ["probe", "--model", str(folder), "--items", "1"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "says model_type 'undeclared', which AGCI does not support" in said
        assert "`agci self-check --experimental CHECKPOINT` says what it would take." in said
    assert main(["self-check", str(folder), "--experimental"]) == 0
    said = capsys.readouterr().out
    assert "get_image_features returned 2 entries of 2 x 16 features." in said
    assert "They stand at 32 positions, in runs of 2 x 16." in said
    assert "LLaVA-v1.5" in said and "nothing was attached, and nothing was written." in said
