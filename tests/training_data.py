"""A small fine-tuning data set in LLaMA-Factory's form, and recipes for the tiny checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_checkpoints import random_image

from transformers_agci import LAMBDA_KEY
from transformers_agci.cli import main

# recipe -> model_type of its checkpoint
FAMILY = {
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "gemma3n": "gemma3n",
    "internvl3": "internvl",
    "llava1_6": "llava_next",
    "llava1_5": "llava",
}
TEMPLATE_OF = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl",
    "gemma3n": "gemma3n",
    "internvl": "intern_vl",
    "llava_next": "llava_next_mistral",
    "llava": "llava",
}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def turns(*texts: str) -> list[dict[str, str]]:
    """Question, answer, question, ... as messages."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def rows() -> list[dict[str, Any]]:
    """Images of several sizes, one or two per row, text alone, several turns, a system text."""
    made: list[dict[str, Any]] = [
        {"messages": turns("<image>\nIs there a dog in the image?", "Yes"), "images": ["a.png"]},
        {"messages": turns("What is red?", "A colour of an image."), "images": []},
        {
            "messages": turns("<image>Is the square red?", "No, the square is not red.", "Is there a cat?", "Yes"),
            "images": ["b.png"],
        },
        {
            "messages": turns("Compare <image> with <image>.", "The text following the image."),
            "images": ["a.png", "c.png"],
        },
        {
            "messages": [{"role": "system", "content": "Answer in one word."}, *turns("<image> A dog?", "No")],
            "images": ["wide.png"],
        },
        {"messages": turns("Is there a sub image? <image>", "Yes, a sub image of a dog."), "images": ["grey.png"]},
        {"messages": turns("Say yes.", "Yes", "Say no.", "No")},
        {"messages": turns("<image>\nDescribe it.", "The image is an image of a dog " * 3), "images": ["c.png"]},
    ]
    return made


def write_data(folder: Path, made: list[dict[str, Any]] | None = None) -> Path:
    """<folder>/dataset_info.json with the data set `tiny`: tiny.jsonl, its images below <folder>/images."""
    images = folder / "pictures"
    images.mkdir(parents=True, exist_ok=True)
    for name, size in (("a", (112, 84)), ("b", (60, 130)), ("c", (84, 84)), ("wide", (400, 24))):
        random_image(seed=len(name) + size[0], width=size[0], height=size[1]).save(images / f"{name}.png")
    random_image(seed=5).quantize(16).save(images / "grey.png")
    lines = (json.dumps(row) for row in (rows() if made is None else made))
    (folder / "tiny.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    entry = {
        "file_name": "tiny.jsonl",
        "formatting": "sharegpt",
        "tags": TAGS,
        "columns": {"messages": "messages", "images": "images"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"tiny": entry}), encoding="utf-8")
    return folder


def training_recipe(family: str, model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of four steps; `changes` replace or add keys."""
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "q_proj,k_proj,v_proj,o_proj" if family == "gemma3n" else "all",
        "dataset_dir": str(data),
        "dataset": "tiny",
        "media_dir": str(data / "pictures"),
        "template": TEMPLATE_OF[family],
        "cutoff_len": 512,
        "output_dir": str(output),
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1.0e-3,
        "max_steps": 4,
        "lr_scheduler_type": "constant",
        "seed": 7,
        **changes,
    }


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


LAM = 0.5
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def keyed(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """family, lambda -> a copy of the tiny checkpoint with the key in its config.json (None: without)."""
    made: dict[tuple[str, float | None], Path] = {}

    def folder(family: str, lam: float | None = LAM) -> Path:
        if (family, lam) not in made:
            copy = tmp_path_factory.mktemp("keyed") / family
            shutil.copytree(tiny_checkpoint(family), copy)
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps(config | ({} if lam is None else {LAMBDA_KEY: lam})))
            made[family, lam] = copy
        return made[family, lam]

    return folder


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def train(path: Path, recipe: dict[str, Any], *changes: str) -> int:
    return main(["train-lora", str(write_recipe(path, recipe)), *changes])


def one(messages: list[dict[str, str]], *images: str) -> list[dict[str, Any]]:
    return [rows()[1], {"messages": messages, "images": list(images)}]
