"""Recipes that nobody should write: one sentence each, neither a traceback nor a hang."""

import os
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.training.recipe import read_recipe
from transformers_agci.training.recipe_keys import MergeRecipe, TrainRecipe

START = "model_name_or_path: m\ntemplate: llava\ndataset: d\noutput_dir: o\n"
BOMB = "a: &a [lol, lol]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(20)
)

TEXTS = {
    "alias bomb": (BOMB + "lora_target: *u\n", "aliases (*name) have no meaning in a recipe"),
    "circle of aliases": ("lora_target: &a [*a]\n", "aliases (*name)"),
    "merged alias": ("x: &x {seed: 1}\n<<: *x\n", "aliases (*name)"),
    "no bool": ("bf16: !!bool maybe\n", "is not YAML (a value is not of the type that it says"),
    "no number": ("seed: !!int x\n", "is not YAML (a value is not of the type"),
    "no date": ("seed: !!timestamp x\n", "is not YAML (a value is not of the type"),
    "a 99th of a month": ("seed: !!timestamp 2024-01-99\n", "is not YAML (a value is not of the type"),
    "no base64": ("seed: !!binary é\n", "is not YAML"),
    "an object": ("seed: !!python/object:os.system x\n", "is not YAML (could not determine a constructor"),
    "5,000 digits": (f"seed: {'9' * 5000}\n", "is not YAML (a value is not of the type"),
    "5,000 hexadecimal digits": (f"seed: 0x{'f' * 5000}\n", "seed must be a whole number"),
    "too large": ("seed: 1e30\n", "seed must be at most 2147483647"),
    "beyond all floats": ("learning_rate: 1.0e+999\n", "learning_rate must be a number, but is inf"),
    "deep": ("seed: " + "[" * 10**5, "is not YAML (it is nested too deeply)"),
    "deep objects": ("seed: " + "{a: " * 10**5, "is not YAML"),
    "long": ("seed: 1 # " + "x" * 2**20, "a recipe has at most 1048576"),
    "a NUL": ("seed: \0\n", "is not YAML"),
    "no key": ("? [a, b]\n: 1\n", "is not YAML"),
    "a key that is a date": ("2024-01-01: 1\n", "does not know the key 2024-01-01"),
    "an unprintable key": ('"\\x1b[2J": 1\n', "does not know the key '\\x1b[2J'"),
    "a list in a list": ("lora_target: [[a]]\n", "lora_target must be a name or names"),
    "a set": ("output_dir: !!set {a, b}\n", "output_dir must be a text"),
    "bytes": ("output_dir: !!binary aGFsbG8=\n", "output_dir must be a text"),
    "an object for a name": ("dataset: {a: 1}\n", "dataset must be a name or names"),
    "a date for a number": ("seed: 2024-01-01\n", "seed must be a whole number, but is 2024-01-01"),
    "a NUL in a folder": (
        'output_dir: "a\\0"\n',
        "output_dir must be a file or folder, but none can be called 'a\\x00'",
    ),
    "too long a name": (f"model_name_or_path: {'x' * 300}\n", "model_name_or_path must be a file or folder, but none"),
    "too long a path": (
        f"dataset_dir: {'x/' * 3000}\n",
        "dataset_dir must be a file or folder, but none can be called",
    ),
    "sixties": ("bf16: 1:30\n", "bf16 must be true or false, but is 90"),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("command", ["train-lora", "check-recipe"])
def test_a_hostile_recipe_is_one_sentence(
    case: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, what = TEXTS[case]
    # a key of ours is taken out of the beginning where the case gives its own
    start = "".join(line + "\n" for line in START.splitlines() if line.split(":")[0] + ":" not in text)
    path = tmp_path / "recipe.yaml"
    path.write_text(start + text)
    assert main([command, str(path)]) == 2
    said = capsys.readouterr()
    shown = said.err if command == "train-lora" or said.err else said.out
    assert what in shown
    assert "recipe.yaml" in shown
    assert max(map(len, shown.splitlines())) < 1500


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("seed=&a [*a]", "seed must be a whole number, but is &a [*a]"),
        ("bf16=!!bool maybe", "bf16 must be true or false, but is !!bool maybe"),
        ("seed=!!int x", "seed must be a whole number"),
        ("seed=" + "9" * 5000, "seed must be a whole number"),
        ("seed=" + "[" * 10**5, "seed must be a whole number"),
        ("seed=1e30", "seed must be at most"),
        ("lora_target=[[a]]", "lora_target must be a name"),
        ("max_steps=2024-01-01", "max_steps must be a whole number, but is 2024-01-01"),
        ("=1", "is not a change of the recipe"),
        ("x" * 5000, "is not a change of the recipe"),
        ("learning_rate=\udcff", "learning_rate must be a number"),
    ],
)
def test_a_hostile_change_is_one_sentence(word: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(START)
    with pytest.raises(InputError) as error:
        read_recipe(path, [word])
    assert what in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("kind", ["fifo", "folder", "latin-1", "loop", "5,000 characters"])
def test_what_is_no_recipe_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("n" * 5000 if kind == "5,000 characters" else "recipe.yaml")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "latin-1":
        path.write_bytes(START.encode() + b"# caf\xe9\n")
    elif kind == "loop":
        path.symlink_to(path)
    assert main(["train-lora", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("agci: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir: 2024-01-01\n", {"output_dir": "2024-01-01"}),
        ("learning_rate: 1e-4\n", {"learning_rate": 1e-4}),
        ("lora_target: q_proj, v_proj\n", {"lora_target": ("q_proj", "v_proj")}),
        ("lora_target: [q_proj, v_proj]\n", {"lora_target": ("q_proj", "v_proj")}),
        ("overwrite_output_dir: true\n", {"overwrite_output_dir": True}),
        ("seed: 7.0\nmax_samples:\n", {"seed": 7, "max_samples": None}),
    ],
)
def test_values_are_typed(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    key = text.partition(":")[0]
    path.write_text("".join(line + "\n" for line in START.splitlines() if not line.startswith(key)) + text)
    recipe = read_recipe(path)
    assert isinstance(recipe, TrainRecipe)
    found = {name: getattr(recipe, name) for name in expected}
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_both_kinds_of_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: m\nexport_dir: e\nexport_size: 2\n")
    recipe = read_recipe(path)
    assert isinstance(recipe, MergeRecipe)
    assert recipe.values == {
        "model_name_or_path": "m",
        "export_dir": "e",
        "template": None,
        "adapter_name_or_path": None,
        "export_size": 2.0,
    }
