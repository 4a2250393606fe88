"""configs/: six recipes that differ only where this file says so, each with the recipe that merges its adapter."""

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from training_data import FAMILY

from transformers_agci.cli import main
from transformers_agci.families import paper_families

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# What may differ between the six. Everything else is one setting for all.
MODEL = {"model_name_or_path", "template", "output_dir"}
SETTINGS = {
    "qwen2_5_vl": {},
    "qwen3_vl": {},
    "gemma3n": {
        "lora_target": "q_proj,k_proj,v_proj,o_proj,gate_proj,mlp.up_proj,down_proj",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2.0,
    },
    "internvl3": {"cutoff_len": 8192, "crop_to_patches": True},
    "llava1_6": {"cutoff_len": 8192, "per_device_train_batch_size": 2, "num_train_epochs": 2.0},
    "llava1_5": {
        "lora_rank": 128,
        "lora_alpha": 256,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "warmup_ratio": 0.03,
    },
}
TEMPLATES = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl_nothink",
    "gemma3n": "gemma3n",
    "internvl3": "intern_vl",
    "llava1_6": "llava_next_mistral",
    "llava1_5": "llava",
}
# The settings that the paper's first version publishes for Qwen2.5-VL, and what holds for every family.
COMMON = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_target": "all",
    "freeze_vision_tower": True,
    "freeze_multi_modal_projector": True,
    "dataset_dir": "data",
    "dataset": "llava_v1_5_instruct_sample_10k",
    "media_dir": "scripts/LLaVA/playground/data",
    "cutoff_len": 2048,
    "crop_to_patches": False,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
}


def read(kind: str, recipe: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / kind / f"{recipe}.yaml").read_text(encoding="utf-8"))


def test_the_six_of_each_kind() -> None:
    for kind in ("train_lora", "merge_lora"):
        assert {path.stem for path in (CONFIGS / kind).iterdir()} == set(FAMILY)
    assert set(FAMILY.values()) == set(paper_families())


@pytest.mark.parametrize("kind", ["train_lora", "merge_lora"])
def test_keys_stand_in_one_order(kind: str) -> None:
    first, *others = [list(read(kind, recipe)) for recipe in FAMILY]
    assert all(other == first for other in others)
    assert "trust_remote_code" not in first


@pytest.mark.parametrize("recipe", FAMILY)
def test_settings(recipe: str) -> None:
    found, first = read("train_lora", recipe), read("train_lora", "qwen2_5_vl")
    assert {key: found[key] for key in COMMON} == COMMON | SETTINGS[recipe]
    rest = set(found) - set(COMMON) - MODEL
    assert {key: found[key] for key in rest} == {key: first[key] for key in rest}
    hub_name = paper_families()[FAMILY[recipe]].hub_id.partition("/")[2]
    assert found["model_name_or_path"] == f"models/{hub_name}"
    assert (found["template"], found["output_dir"]) == (TEMPLATES[recipe], f"saves/{recipe}")


@pytest.mark.parametrize("recipe", FAMILY)
def test_merging_goes_with_training(recipe: str) -> None:
    training, merging = read("train_lora", recipe), read("merge_lora", recipe)
    model = training["model_name_or_path"]
    assert merging == {
        "model_name_or_path": model,
        "adapter_name_or_path": training["output_dir"],
        "template": training["template"],
        "export_dir": f"{model}-tuned",
        "export_size": 5,
        "export_device": "cpu",
        "export_legacy_format": False,
    }


@pytest.mark.parametrize("recipe", FAMILY)
def test_check_recipe_passes(
    recipe: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our recipe on the shipped sample: no error, no warning, no key that only LLaMA-Factory knows."""
    places = {
        "model_name_or_path": tiny_checkpoint(FAMILY[recipe]),
        "output_dir": tmp_path / "out",
        "dataset": "sample_noto",
        "dataset_dir": ROOT / "data",
        "media_dir": ROOT / "data",
    }
    changes = [f"{key}={value}" for key, value in places.items()]
    code = main(["check-recipe", str(CONFIGS / "train_lora" / f"{recipe}.yaml"), *changes])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "0 errors, 0 warnings" in said
    assert "16 rows" in said
    assert "only LLaMA-Factory can tell" not in said


def test_the_data_set_has_an_entry_and_a_place() -> None:
    entries = json.loads((ROOT / COMMON["dataset_dir"] / "dataset_info.json").read_text())
    assert COMMON["dataset"] in entries
    assert (ROOT / COMMON["media_dir"] / "README.md").is_file()


def test_outputs_stay_untracked() -> None:
    written = [read("train_lora", recipe)["output_dir"] for recipe in FAMILY]
    written += [read("merge_lora", recipe)["export_dir"] for recipe in FAMILY] + [".venv-train/bin/python"]
    ignored = subprocess.run(["git", "check-ignore", *written], cwd=ROOT, capture_output=True, text=True, check=False)
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.stdout.split() == written


def test_one_environment_can_do_both() -> None:
    """`pip install .[eval]` admits every version that LLaMA-Factory is installed with."""
    lines = (ROOT / "constraints-train.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["eval"])]
    met = {need.name for need in needs if need.name in pins and need.specifier.contains(pins[need.name])}
    assert met == {need.name for need in needs if need.name in pins}
    assert {"transformers", "accelerate", "peft", "datasets", "pillow"} <= met


def test_readme_of_the_recipes_names_them_and_the_control() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for recipe in FAMILY:
        found = read("train_lora", recipe)
        name = paper_families()[FAMILY[recipe]].name
        assert f"| {name} | `{recipe}` | `{found['model_name_or_path']}` |" in text
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    for word in (
        "agci set-lambda",
        "--output",
        "agci check-recipe",
        "llamafactory-cli train",
        "agci train-lora",
        "llamafactory-cli export",
        "agci merge-lora",
        "agci probe",
        "FORCE_TORCHRUN=1",
    ):
        assert word in blocks, word


def test_recipes_are_found_where_only_the_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wheel carries configs/ inside the package (pyproject.toml); messages and help name it as in the repository."""
    from transformers_agci.training import recipe

    monkeypatch.chdir(tmp_path)
    name = "configs/train_lora/llava1_5.yaml"
    assert recipe.recipe_path(Path(name)) == CONFIGS / "train_lora/llava1_5.yaml"
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert "custom" in targets["wheel"]["hooks"]
    assert 'WHERE = "transformers_agci/configs"' in (ROOT / "hatch_build.py").read_text()
    needed = {"/transformers_agci", "/configs", "/hatch_build.py"}  # a wheel is built from the sdist, too
    assert needed <= set(targets["sdist"]["include"])
    assert all(entry.startswith("/") for entry in targets["sdist"]["include"])  # else of every folder
    assert main(["check-recipe", "configs/train_lora/no_such.yaml"]) == 2
    assert "configs/train_lora/qwen2_5_vl.yaml" in capsys.readouterr().err
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert recipe.recipe_path(Path(name)) == Path(name)
