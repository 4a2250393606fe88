"""A position probe of three items on a tiny checkpoint, for the tests of the engine."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import random_image

from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.progress import RunSummary
from transformers_agci.inference.questions import (
    ImageFile,
    Question,
    QuestionSet,
)
from transformers_agci.inference.runner import RunOptions, output_paths

LAMBDAS = [0.0, 0.5]
ITEMS, CELLS = 3, 4


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(ITEMS * CELLS):
        random_image(number).save(folder / f"{number}.jpg")
    return folder


def probe(folder: Path, items: int = ITEMS) -> list[Question]:
    """Each item has CELLS images and two captions for each, as the position probe has."""
    asked: list[Question] = []
    for item in range(items):
        for caption in (f"a dog {item}", "nothing"):
            for cell in range(CELLS):
                where, name = f"rows.json:{len(asked) + 1}", f"{item * CELLS + cell}.jpg"
                asked.append(
                    Question(
                        {"id": item, "cell": cell, "caption": caption},
                        where,
                        f"Is there {caption}?",
                        (ImageFile(folder, name, where),),
                        item,
                    )
                )
    return asked


def ask(
    loaded: LoadedModel, questions: list[Question], path: Path, lambdas: list[float] = LAMBDAS, **options: Any
) -> RunSummary:
    """`options` are those of AnswerOptions, RunOptions and QuestionSet by name."""
    given = {"batch_size": CELLS, "block_rows": 8, "progress": False, **options}
    of_run = {name: given.pop(name) for name in ("shard", "overwrite", "strict", "progress") if name in given}
    of_set = {name: given.pop(name) for name in ("bad_rows", "settings", "notes") if name in given}
    asked = QuestionSet(questions, **of_set)
    return answer_questions(
        loaded, asked, lambdas, output_paths(path, lambdas), AnswerOptions(run=RunOptions(**of_run), **given)
    )


@contextlib.contextmanager
def before_forward(loaded: LoadedModel, work: Callable[[int], None]) -> Iterator[None]:
    """Before every forward call of the model `work(rows of the batch)`, which may raise."""
    hook = loaded.model.register_forward_pre_hook(
        lambda _, args, given: work(len(given["input_ids"])), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("manifest.json")}


def spoil(folder: Path, source: Path) -> None:
    """Copy the images, without number 1, with number 5 cut short."""
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: 300 if file.name == "5.jpg" else None])
    (folder / "1.jpg").unlink()
