"""A small probe set and `agci probe` on it, for the tests of the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.method.lam import LAMBDA_KEY

ITEMS = 2


def probe_rows(answer: str = "Yes", items: int = ITEMS) -> list[dict[str, Any]]:
    return [
        {
            "id": 9 * item + k,
            "image": f"{item:03d}_{k}.jpg",
            "caption": f"{answer} image {item}",
            "position": position,
            "answer": answer,
            "extra": {"kept": item},
        }
        for item in range(items)
        for k, position in enumerate(POSITIONS)
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two items of tiny composites: folder with x.json, x_negatives.json and images/."""
    images = tmp_path / "images"
    images.mkdir()
    for item in range(ITEMS):
        for k in range(9):
            picture = Image.new("RGB", (56, 56), "white")
            left, top = 18 * (k % 3), 18 * (k // 3)
            picture.paste((40 * item + 20, 25 * k, 90), (left, top, left + 18, top + 18))
            picture.save(images / f"{item:03d}_{k}.jpg")
    write_rows(tmp_path / "x.json", probe_rows())
    write_rows(tmp_path / "x_negatives.json", probe_rows("No"))
    return tmp_path


@pytest.fixture
def probe(data: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Run `agci probe` on the data; words may replace the defaults."""

    def run(*words: Any, family: str = "qwen2_5_vl", **changes: Any) -> int:
        options = {
            "model_path": tiny_checkpoint(family),
            "eval_file": data / "x.json",
            "img_path": data / "images",
            "answer_file": data / "A.jsonl",
        } | changes
        flat = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return main(["probe", *flat, "--device", "cpu", "--quiet", *map(str, words)])

    return run


def with_key(checkpoint: Path, folder: Path, value: object) -> Path:
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {LAMBDA_KEY: value}))
    return folder
