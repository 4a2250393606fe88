"""A run of the engine openai against the stub server, for the tests of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from stub_server import StubServer

from transformers_agci.experiments.engines import EngineOptions, open_engine
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.questions import BlankImage, Question, QuestionSet
from transformers_agci.inference.runner import RunOptions
from transformers_agci.inference.served import client
from transformers_agci.inference.served.client import ServedOptions

KEY = "sk-a-key-that-nobody-may-see"
ROWS = 8


@pytest.fixture(autouse=True)
def quick_and_keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of the file that has this name."""
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(
    server: StubServer | str, path: Path, questions: list[Question] | None = None, block_rows: int = 2, **served: Any
) -> Any:
    asked = questions or [
        Question({"id": number}, f"x.json:{number + 1}", f"Is it {number}?", (BlankImage(8, 6, (number, 0, 0)),))
        for number in range(ROWS)
    ]
    url = server if isinstance(server, str) else server.url
    options = EngineOptions("openai", ServedOptions(url, **{"concurrency": 1, **served}))
    opened = open_engine(options, LoadOptions("stub"))
    try:
        run = RunOptions(progress=False)
        return answer_questions(
            opened, QuestionSet(asked), [0.0], [path], AnswerOptions(block_rows=block_rows, run=run)
        )
    finally:
        opened.close()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything_written(folder: Path) -> str:
    return "".join(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())
