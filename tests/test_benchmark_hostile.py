"""Answers and options made to break a scorer: they are scored or refused, never with a traceback.

How many characters a reader looks at in a long answer is counted, and grows with its length.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_samples import write_json, write_rows

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import crpe, hallusionbench, mmmu_pro, pope, scienceqa, textvqa

LENGTHS = (20_000, 160_000)
MEGABYTE = 1_000_000
PATTERNS = {
    "letters": "A",
    "spaces": " ",
    "dots": ".",
    "commas": ",",
    "statements": "The answer is ",
    "markers": "Answer:",
    "questions": "Question: ",
    "lines": "\n",
    "emoji": "😀",
    "controls": "\x00\x1b[31m\r",
    "words": "no yes ",
    "brackets": "(A)",
    "apostrophes": "'s",
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


class CountedText(str):
    """A text that counts at how many characters its methods and operators look, in the worst case.

    What they return counts on. A search from the right looks at the whole of what it seeks at every place: unlike
    `find`, it has no linear algorithm in Python.
    """

    looked_at = 0


FROM_THE_RIGHT = ("rfind", "rindex", "rpartition", "rsplit")
NOT_COUNTED = ("__class__", "__new__", "__init__", "__getattribute__", "__len__", "__hash__", "__init_subclass__")
NOT_COUNTED += ("__subclasshook__", "__str__", "__repr__", "__sizeof__", "__dir__", "__reduce__", "__reduce_ex__")


def counted(found: object) -> object:
    if type(found) is str:
        return CountedText(found)
    return type(found)(map(counted, found)) if isinstance(found, list | tuple) else found


def counting(name: str) -> Callable[..., object]:
    plain = getattr(str, name)

    def method(self: CountedText, *arguments: object) -> object:
        sought = arguments[0] if name in FROM_THE_RIGHT and arguments else None
        found = plain(self, *arguments)
        cost = len(found) if name in ("__getitem__", "__add__", "__mul__") else len(self)
        CountedText.looked_at += cost * (len(sought) if isinstance(sought, str) else 1)
        return counted(found)

    return method


for method_name in dir(str):
    if method_name not in NOT_COUNTED and callable(getattr(str, method_name)):
        setattr(CountedText, method_name, counting(method_name))


def growth(read: Callable[[str], object], pattern: str, start: str = "") -> float:
    """At how many times more characters the reader looks in a text of eight times the length; 64 with its square."""
    looked_at = []
    for length in LENGTHS:
        CountedText.looked_at = 0
        read(CountedText(start + pattern * (length // len(pattern))))
        looked_at.append(max(CountedText.looked_at, LENGTHS[0]))  # some readers look at the beginning only
    return looked_at[1] / looked_at[0]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_is_looked_at_grows_with_the_length_of_an_answer(pattern: str, reader: Callable[[str], object]) -> None:
    assert growth(reader, pattern, "OCR tokens: " if pattern == "Question: " else "") < 10


@pytest.mark.parametrize(
    "reader",
    [
        lambda text: [text.count("b") for _ in range(len(text) // 1000)],
        lambda text: [text[place:] for place in range(0, len(text), 1000)],
        lambda text: ["b" in text.lower() for _ in range(len(text) // 1000)],
        lambda text: text.rfind("b" * (len(text) // 2)),
    ],
    ids=["counts", "slices", "of what is returned", "from the right"],
)
def test_the_count_sees_a_square(reader: Callable[[str], object]) -> None:
    """What the test above would find in a reader that looks at all pairs of characters."""
    assert growth(lambda text: text[:3000].lower() and text.count("b"), "a") < 10
    assert growth(reader, "a") > 50


def test_option_text_that_almost_matches_everywhere() -> None:
    options = ["b" + "a" * 5_000, "six"]
    start = "one two three four five six "
    assert mmmu_pro.read_answer(start + "a" * MEGABYTE, options) == "B"
    assert growth(lambda text: mmmu_pro.read_answer(text, options), "a", start) < 10


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
    with pytest.raises(InputError, match="'options'"):
        mmmu_pro.read_options(literal)


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
    rows = [{**row, "text": value} for row in samples.scienceqa_answers(["A"] * 4)]
    answers = write_rows(tmp_path / "a.jsonl", rows)
    assert main(["score", "scienceqa", "--questions", str(questions), "--answers", str(answers)]) == 2
    assert "a.jsonl:1: the answer must be text" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, ["4"], {"a": 1}, 1.5])
def test_an_id_that_is_no_key_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: Any) -> None:
    questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
    rows = [{**row, "question_id": key} for row in samples.scienceqa_answers(["A"] * 4)]
    answers = write_rows(tmp_path / "a.jsonl", rows)
    assert main(["score", "scienceqa", "--questions", str(questions), "--answers", str(answers)]) == 2
    assert "a.jsonl:1: the id in 'question_id' must be text or a number" in capsys.readouterr().err
