"""agci self-check --experimental: a model of no family is looked at, and nothing of it is changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import Checkpoints, random_image
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


def test_features_that_are_added_to_the_embeddings() -> None:
    if "molmo2" not in TINY:
        pytest.skip("this transformers has no Molmo2")
    batch = make_batch(TINY["molmo2"], [[TEXT, "tiled", "plain", TEXT]])
    found = explore(TINY["molmo2"].build(), batch.inputs, images=2)
    assert found.served
    assert "Molmo2 is supported all the same: `agci self-check CHECKPOINT` checks it." in str(found)


def test_a_model_without_the_place_is_said_to_have_none() -> None:
    model = torch.nn.Linear(2, 2)
    found = explore(model, {}, images=1)
    assert not found.served
    assert "Linear cannot be served" in str(found)


def test_the_command_looks_at_a_checkpoint(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint("llava")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["self-check", str(folder), "--experimental"]) == 0
    said = capsys.readouterr().out
    assert "LlavaModel merges image features and calls LlamaModel" in said or "merges image features" in said
    assert "nothing was written" in said
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def copied(tiny_checkpoint: Checkpoints, folder: Path) -> Path:
    """A LLaVA checkpoint that a test may spoil."""
    return shutil.copytree(tiny_checkpoint("llava"), folder / "spoiled")


def test_a_checkpoint_without_a_chat_template_is_looked_at(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PaliGemma's and GOT-OCR2's have none: the image token then stands before the text."""
    folder = copied(tiny_checkpoint, tmp_path)
    for file in folder.glob("chat_template*"):
        file.unlink()
    for file in folder.glob("*.json"):
        settings = json.loads(file.read_text())
        if isinstance(settings, dict) and settings.pop("chat_template", None):
            file.write_text(json.dumps(settings))
    assert main(["self-check", str(folder), "--experimental"]) == 0
    assert "They stand at 32 positions, in runs of 1 x 32." in capsys.readouterr().out


def test_a_checkpoint_without_a_processor_is_a_sentence(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tiny_checkpoint, tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert main(["self-check", str(folder), "--experimental"]) == 2
    assert "agci: " in (said := capsys.readouterr().err)
    assert "processor for text and images" in said or "cannot be loaded by transformers" in said


def test_a_call_that_fails_is_said(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlavaModel

    def fails(self: object, *_: object, **__: object) -> None:
        raise KeyError("image_sizes")

    monkeypatch.setattr(LlavaModel, "get_image_features", fails)
    assert main(["self-check", str(tiny_checkpoint("llava")), "--experimental"]) == 1
    assert "failed: 'image_sizes'" in capsys.readouterr().out


def test_a_refused_family_is_told_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama"}))
    assert main(["self-check", str(tmp_path), "--experimental"]) == 1
    assert "Llama 3.2 Vision cannot be served: its decoder looks at the image through cross" in capsys.readouterr().out


def test_an_image_that_is_none_is_a_sentence(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.png").write_text("words")
    for more in ([], ["--experimental"]):
        for name in ("words.png", "missing.png"):
            words = ["self-check", str(tiny_checkpoint("llava")), "--image", str(tmp_path / name), *more]
            assert main(words) == 2
            assert name in capsys.readouterr().err


@pytest.mark.slow
def test_an_image_that_the_processor_refuses_is_a_sentence(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_image(0, 900, 3).save(tmp_path / "long.png")  # Qwen's takes no image longer than 200 times its height
    words = ["self-check", str(tiny_checkpoint("qwen2_5_vl")), "--image", str(tmp_path / "long.png")]
    assert main(words) == 2
    assert "The processor takes no question about" in capsys.readouterr().err
    assert main([*words, "--experimental"]) == 2
    assert "makes no prompt with an image" in capsys.readouterr().err


@pytest.mark.slow
def test_a_family_that_nobody_declared_from_end_to_end(
    tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    monkeypatch.chdir(tmp_path)
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
