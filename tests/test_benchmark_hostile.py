"""Answers and options made to break a scorer: they are scored or refused, in bounded time, never with a traceback."""

import time
from pathlib import Path

import benchmark_samples as samples
import pytest
from benchmark_samples import write_json, write_rows

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import crpe, hallusionbench, mmmu_pro, pope, scienceqa, textvqa

MEGABYTE = 1_000_000
HUGE = {
    "letters": "A" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "dots": "." * MEGABYTE,
    "commas": "," * MEGABYTE,
    "statements": "The answer is " * (MEGABYTE // 14),
    "markers": "Answer:" * (MEGABYTE // 7),
    "questions": "OCR tokens: " + "Question: " * (MEGABYTE // 10),
    "lines": "\n" * MEGABYTE,
    "emoji": "😀" * (MEGABYTE // 4),
    "controls": "\x00\x1b[31m\r" * (MEGABYTE // 7),
    "words": "no yes " * (MEGABYTE // 7),
    "brackets": "(A)" * (MEGABYTE // 3),
    "apostrophes": "'s" * (MEGABYTE // 2),
}
READERS = {
    "scienceqa": scienceqa.read_answer,
    "pope": pope.read_answer,
    "textvqa": textvqa.normalise,
    "textvqa question": textvqa.question_of,
    "hallusionbench": hallusionbench.read_answer,
    "mmmu_pro": lambda text: mmmu_pro.read_answer(text, ["aaa", "b" * 10_000, "", "Answer:A"]),
    "crpe": lambda text: crpe.is_right(text, "A"),
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_megabyte_is_read_in_linear_time(text: str, reader) -> None:
    """CPU time far above what a linear reader takes, far below what a quadratic one would."""
    start = time.process_time()
    reader(text)
    assert time.process_time() - start < 5


def test_option_text_that_almost_matches_everywhere() -> None:
    text = "one two three four five six " + "a" * MEGABYTE
    start = time.process_time()
    assert mmmu_pro.read_answer(text, ["b" + "a" * 50_000, "six"]) == "B"
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "literal",
    [
        "[" * 1000,
        "[" * 1000 + "]" * 1000,
        "-" * 100_000 + "1",
        "{" * 500,
        "['a', " * 90,
        "('a'",
        "__import__('os')",
        "[x]",
        "[1] * 1000000000",
        "'" * MEGABYTE,
        "['a'" + ", 'a'" * 30_000 + "]",
        "[]",
        "1",
        "{'a', 'b'}",
        "\x00",
        "",
        "[" + "'x'," * 200 + "]",
        "1" + "+1j" * 20_000,
        "~" * 30 + "1",
        "- " * 5000 + "1",
        "['\\ud800'",
        "lambda: 0",
        "f'{1}'",
    ],
)
def test_options_that_are_no_list_are_refused(literal: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="'options'"):
        mmmu_pro.read_options(literal)
    assert time.process_time() - start < 5


def test_options_as_they_are_published() -> None:
    assert mmmu_pro.read_options("['$q_{0}=350.7403\\\\frac{kN}{m}$', \"it's\", '((((a))))']")[1] == "it's"
    assert mmmu_pro.read_options(["a", "b"]) == ["a", "b"]
    assert mmmu_pro.read_options("[['nested', 'list']]") == [["nested", "list"]]


@pytest.mark.parametrize("text", ["\x00", "\ud800", "😀", "\u202eB", "A\x1b[31m", "\u2028", "", " "])
def test_odd_answers_are_scored_and_written(tmp_path: Path, text: str) -> None:
    questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
    answers = write_rows(tmp_path / "a.jsonl", samples.scienceqa_answers([text] * 4))
    items = tmp_path / "items.jsonl"
    arguments = [
        "score",
        "scienceqa",
        "--questions",
        str(questions),
        "--answers",
        str(answers),
        "--items",
        str(items),
    ]
    assert main(arguments) == 0
    assert len(items.read_text().splitlines()) == 4


def test_names_that_are_no_text_for_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "subject": "\ud800\x1b[31m"} for row in samples.mmmu_rows(["B", "A"])]
    assert main(["score", "mmmu_pro", "--answers", str(write_rows(tmp_path / "m.jsonl", rows))]) == 0
    assert "\\ud800\\x1b[31m" in capsys.readouterr().out


@pytest.mark.parametrize("value", [None, 3, ["A"], {"a": 1}, True, 1.5])
def test_an_answer_that_is_no_text_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value
) -> None:
    questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
    rows = [{**row, "text": value} for row in samples.scienceqa_answers(["A"] * 4)]
    answers = write_rows(tmp_path / "a.jsonl", rows)
    assert main(["score", "scienceqa", "--questions", str(questions), "--answers", str(answers)]) == 2
    assert "a.jsonl:1: the answer must be text" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, ["4"], {"a": 1}, 1.5])
def test_an_id_that_is_no_key_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], key) -> None:
    questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
    rows = [{**row, "question_id": key} for row in samples.scienceqa_answers(["A"] * 4)]
    answers = write_rows(tmp_path / "a.jsonl", rows)
    assert main(["score", "scienceqa", "--questions", str(questions), "--answers", str(answers)]) == 2
    assert "a.jsonl:1: the id in 'question_id' must be text or a number" in capsys.readouterr().err
