"""agci self-check --experimental: a model of no family is looked at, and nothing of it is changed."""

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
