"""agci train-lora and merge-lora beside LLaMA-Factory: the same recipe, the same losses, adapters that either merges.

Runs under `make train-test`, as tests/test_llama_factory.py does.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import training_data as td
from test_llama_factory import TrainingEnvironment, training  # noqa: F401 (a fixture)
from tiny_checkpoints import FAMILIES, build_processor, checkpoint, prompt_inputs, random_image
from transformers import AutoModelForImageTextToText

from transformers_agci.cli import main

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")]


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [float(entry["loss"]) for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> its tiny checkpoint with lambda 0.5."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = checkpoint(family, tmp_path_factory.mktemp("keyed") / family)
            assert main(["set-lambda", str(made[family]), "0.5"]) == 0
        return made[family]

    return folder


def long_rows() -> list[dict]:
    """Rows of which cutoff_len leaves something of either side; the image stands at the beginning."""
    texts = [
        ("What is red? " * n, "A colour of an image. " * m, "Is there a dog? " * m, "Yes there is " * n)
        for n, m in ((1, 1), (1, 24), (24, 1), (16, 16))
    ]
    rows = [{"messages": td.turns(*four), "images": []} for four in texts]
    cut = {"messages": td.turns("<image>A dog?", " The text" * 300), "images": ["a.png"]}
    return [*rows, cut, cut]


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_losses(
    family: str,
    keyed: Callable[[str], Path],
    training: TrainingEnvironment,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two epochs over images, pairs of images and text alone; then rows that are cut."""
    for name, made, changes in (("all", None, {"max_steps": 8}), ("cut", long_rows(), {"cutoff_len": 480})):
        data = td.write_data(tmp_path / name, made)
        done = {}
        for who in ("ours", "theirs"):
            output = tmp_path / f"{name}.{who}"
            raw = td.training_recipe(family, keyed(family), data, output, overwrite_cache=True, **changes)
            recipe = str(td.write_recipe(tmp_path / "r.yaml", raw))
            if who == "ours":
                assert main(["train-lora", recipe]) == 0
                assert ("; 0 of them are cut" in capsys.readouterr().out) == (name == "all")
            else:
                training.run("llamafactory-cli", "train", recipe)
            done[who] = losses(output)
        assert len(done["ours"]) == raw["max_steps"]
        assert done["ours"] == pytest.approx(done["theirs"], abs=1e-4), name


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_either_merges_the_other_s_adapter(
    family: str,
    keyed: Callable[[str], Path],
    training: TrainingEnvironment,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = td.write_data(tmp_path / "data")
    for who in ("ours", "theirs"):
        raw = td.training_recipe(family, keyed(family), data, tmp_path / who)
        recipe = str(td.write_recipe(tmp_path / "r.yaml", raw))
        if who == "ours":
            assert main(["train-lora", recipe]) == 0
        else:
            training.run("llamafactory-cli", "train", recipe)
    for adapter in ("ours", "theirs"):
        seen = []
        for who in ("ours", "theirs"):
            merged = tmp_path / f"{adapter}.merged.{who}"
            raw = {
                "model_name_or_path": str(keyed(family)),
                "adapter_name_or_path": str(tmp_path / adapter),
                "template": td.TEMPLATE_OF[family],
                "export_dir": str(merged),
            }
            recipe = str(td.write_recipe(tmp_path / "m.yaml", raw))
            if who == "ours":
                assert main(["merge-lora", recipe]) == 0
            else:
                training.run("llamafactory-cli", "export", recipe)
            model = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
            with torch.no_grad():
                inputs = prompt_inputs(build_processor(family), "A dog?", random_image(seed=3))
                seen.append(model(**inputs).logits)
        assert torch.allclose(*seen, atol=1e-5, rtol=1e-5), adapter
