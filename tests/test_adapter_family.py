"""An adapter whose layers fit, but which was trained on another family, is not merged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import Checkpoints

from transformers_agci.cli import main
from transformers_agci.families import paper_families
from transformers_agci.training.provenance import trained_family

ROOT = Path(__file__).resolve().parents[1]


def write_adapter(folder: Path, base: str) -> Path:
    """One layer that every tiny checkpoint has, changed by LoRA of rank 1."""
    folder.mkdir()
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(1, 32), f"{layer}.lora_B.weight": torch.ones(32, 1)},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("evidence", ["processor", "base"])
@pytest.mark.parametrize("trained", paper_families())
def test_only_its_own_family_takes_it(
    trained: str, evidence: str, tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_checkpoints import build_processor

    adapter = write_adapter(tmp_path / "adapter", "gone" if evidence == "processor" else str(tiny_checkpoint(trained)))
    if evidence == "processor":
        build_processor(trained).save_pretrained(adapter)
    recipe = ROOT / "configs" / "merge_lora" / "qwen2_5_vl.yaml"
    model = tiny_checkpoint("qwen2_5_vl")
    code = main(
        [
            "check-recipe",
            str(recipe),
            f"model_name_or_path={model}",
            f"adapter_name_or_path={adapter}",
            f"export_dir={tmp_path / 'merged'}",
        ]
    )
    said = capsys.readouterr().out
    if trained == "qwen2_5_vl":
        assert code == 0, said
    else:
        assert code == 2
        assert f"was trained on {paper_families()[trained].name}" in said
        assert "is Qwen2.5-VL" in said


def test_nothing_says_it(tmp_path: Path) -> None:
    assert trained_family(write_adapter(tmp_path / "adapter", "gone"), None) is None
    (tmp_path / "adapter" / "processor_config.json").write_text("[]")
    assert trained_family(tmp_path / "adapter", "gone") is None
