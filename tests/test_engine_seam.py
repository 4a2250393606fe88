"""The seam between a run and an engine: an engine that batches by itself, its blocks, bad rows, resume and manifest."""

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import EngineOptions, VllmOptions
from transformers_agci.inference.answer import Answer
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.engine import AS_SERVED, QueuedAnswering, engine_lambdas
from transformers_agci.inference.progress import Counts, RunSummary
from transformers_agci.inference.questions import Question, QuestionSet
from transformers_agci.inference.runner import RunOptions, output_paths

ROWS, BLOCK = 10, 4


class ScriptedEngine:
    """Answers pairs of questions, the later one first; rows in `broken` have no answer, `killed_at` interrupts."""

    description = "scripted"
    notes: ClassVar[dict] = {}
    lam = None
    lambdas_together = False

    def __init__(
        self,
        name: str = "scripted",
        broken: tuple[Any, ...] = (),
        killed_at: int | None = None,
        sets_lambda: bool = True,
    ) -> None:
        self.name, self.identity = name, {"weights_sha256": "0"}
        self.broken, self.killed_at, self.sets_lambda = broken, killed_at, sets_lambda
        self.asked: list[tuple[float, int]] = []

    def answering(
        self, questions: list[Question], lambdas: list[float], options: AnswerOptions
    ) -> QueuedAnswering | None:
        assert len(lambdas) == 1
        return QueuedAnswering(self, questions, options, functools.partial(self.answers, lam=lambdas[0]), Counts())

    def answers(self, numbered: Iterator[Any], lam: float) -> Iterator:
        numbered = iter(numbered)
        for first in numbered:
            pair = [first, *itertools.islice(numbered, 1)]
            for number, question in reversed(pair):
                if number == self.killed_at:
                    raise KeyboardInterrupt
                self.asked.append((lam, number))
                bad = InputError(f"{question.where}: no answer")
                yield number, bad if number in self.broken else Answer("Yes", -0.5 - lam, -1.5)

    def describe(self, *_: Any) -> Any:
        return []

    def close(self) -> None:
        pass


def ask(
    engine: ScriptedEngine, path: Path, lambdas: tuple[float] = (0.0,), strict: bool = False, **options: Any
) -> RunSummary:
    questions = [Question({"id": number}, f"x.json:{number + 1}", f"Is it {number}?") for number in range(ROWS)]
    run = RunOptions(progress=False, strict=strict)
    outputs = output_paths(path, lambdas)
    settings = AnswerOptions(block_rows=BLOCK, run=run, **options)
    return answer_questions(engine, QuestionSet(questions), list(lambdas), outputs, settings)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_stand_in_input_order_whatever_the_order_of_the_answers(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    summary = ask(engine, tmp_path / "A.jsonl")
    assert [number for _, number in engine.asked] == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == list(range(ROWS))
    assert rows(tmp_path / "A.jsonl")[3] == {
        "id": 3,
        "prediction": "Yes",
        "qs": "Is it 3?",
        "yes_logit": -0.5,
        "no_logit": -1.5,
        "margin": 1.0,
    }
    assert summary.counts.rows == ROWS


def test_lambdas_are_runs_of_their_own_one_after_the_other(tmp_path: Path) -> None:
    engine = ScriptedEngine(broken=[2])
    summary = ask(engine, tmp_path / "A.jsonl", lambdas=[0.0, 0.5])
    assert [lam for lam, _ in engine.asked] == [0.0] * ROWS + [0.5] * ROWS
    assert [row["margin"] for row in rows(tmp_path / "A.lam0.5.jsonl")] == [0.5] * (ROWS - 1)
    assert summary.counts.rows == 2 * (ROWS - 1)
    assert [row.error for row in summary.counts.failed] == ["x.json:3: no answer"]  # once, not once per lambda
    assert summary.outputs == (tmp_path / "A.lam0.jsonl", tmp_path / "A.lam0.5.jsonl")


def test_a_killed_run_goes_on_with_the_block_that_was_not_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(ScriptedEngine(killed_at=6), tmp_path / "A.jsonl")
    engine = ScriptedEngine()
    summary = ask(engine, tmp_path / "A.jsonl")
    assert sorted(number for _, number in engine.asked) == list(range(BLOCK, ROWS))
    assert summary.counts.already_done == BLOCK
    ask(ScriptedEngine(), tmp_path / "B.jsonl")
    assert (tmp_path / "A.jsonl").read_bytes() == (tmp_path / "B.jsonl").read_bytes()


def test_another_engine_does_not_continue_a_result(tmp_path: Path) -> None:
    ask(ScriptedEngine(), tmp_path / "A.jsonl")
    with pytest.raises(InputError, match="engine is 'scripted' there and 'other' now"):
        ask(ScriptedEngine("other"), tmp_path / "A.jsonl")


def test_a_manifest_without_an_engine_is_that_of_transformers(tmp_path: Path) -> None:
    ask(ScriptedEngine("transformers"), tmp_path / "A.jsonl")
    path = tmp_path / "A.manifest.json"
    content = json.loads(path.read_text())
    assert content["settings"].pop("engine") == "transformers"
    path.write_text(json.dumps(content))
    assert ask(ScriptedEngine("transformers"), tmp_path / "A.jsonl").counts.already_done == ROWS
    with pytest.raises(InputError, match="engine is 'transformers' there and 'vllm' now"):
        ask(ScriptedEngine("vllm"), tmp_path / "A.jsonl")


def test_strict_stops_at_the_first_row_without_an_answer(tmp_path: Path) -> None:
    engine = ScriptedEngine(broken=[1])
    with pytest.raises(InputError, match=r"^x.json:2: no answer"):
        ask(engine, tmp_path / "A.jsonl", strict=True)
    assert engine.asked == [(0.0, 1)]


def test_an_engine_that_loses_a_question_is_a_defect_and_not_a_short_result(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.answers = lambda numbered, lam: (pair for pair in ScriptedEngine.answers(engine, numbered, lam) if pair[0])
    with pytest.raises(RuntimeError):
        ask(engine, tmp_path / "A.jsonl")


def test_lambda_of_a_server_is_as_served(tmp_path: Path) -> None:
    engine = ScriptedEngine(sets_lambda=False)
    assert engine_lambdas(engine, [])[0] == [0.0]
    with pytest.raises(InputError, match=r"`global_context_lambda` 0\.5 cannot be set on a server"):
        engine_lambdas(engine, [0.5])
    ask(engine, tmp_path / "A.jsonl")
    settings = json.loads((tmp_path / "A.manifest.json").read_text())["settings"]
    assert [settings[name] for name in ("lambda", "method", "scope")] == [AS_SERVED] * 3


def test_options_of_another_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`tensor_parallel_size` is for the engine vllm, but the engine is transform"):
        EngineOptions(vllm=VllmOptions(tensor_parallel_size=2))
    with pytest.raises(InputError, match="`batch_size` is for the engine transformers: scripted batches by itself"):
        ask(ScriptedEngine(), tmp_path / "A.jsonl", batch_size=4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["probe", "--engine", "vlm"], "--engine must be one of transformers, vllm, openai, but is 'vlm'."),
        (["probe", "--engine_args", "[1]"], "--engine_args must be a JSON object"),
        (["probe", "--data_parallel_size", "2"], "--data_parallel_size is for the engine vllm"),
        (["similarity", "--engine", "vllm"], "--engine vllm: agci similarity needs what happens inside the model"),
    ],
)
def test_mistakes_in_engine_options_are_sentences(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
