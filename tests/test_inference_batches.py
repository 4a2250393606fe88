"""Blocks, columns and stop rules: pure functions of the input."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers_agci.errors import InputError
from transformers_agci.experiments.position.results import read_answer
from transformers_agci.inference.answer import Answer, verdict_is_fixed
from transformers_agci.inference.batches import image_keys, make_plan, plan_blocks, plan_columns
from transformers_agci.inference.progress import Progress
from transformers_agci.inference.prompt import chat_content
from transformers_agci.inference.questions import Question, up_to


@dataclass(frozen=True)
class Named:
    key: str


def question(*images: str, group: object = None, text: str = "Is it?", **more: Any) -> Question:
    return Question({}, "x", text, tuple(map(Named, images)), group, **more)


GROUPS = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12)


@given(GROUPS, st.integers(1, 9))
def test_blocks_are_whole_groups_of_at_least_so_many_rows(groups: list[tuple[int, bool]], block_rows: int) -> None:
    questions = [
        question(group=None if alone else name) for name, (size, alone) in enumerate(groups) for _ in range(size)
    ]
    blocks = plan_blocks(questions, block_rows)
    assert [number for block in blocks for number in range(block.start, block.stop)] == list(range(len(questions)))
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert all(block.size >= block_rows for block in blocks[:-1])
    for block in blocks[:-1]:
        before, after = questions[block.stop - 1].group, questions[block.stop].group
        assert before is None or before != after


def test_more_input_does_not_move_the_blocks_before_it() -> None:
    questions = [question(group=number // 3) for number in range(30)]
    long, short = plan_blocks(questions, 4), plan_blocks(questions[:20], 4)
    assert short[:-1] == long[: len(short) - 1]


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=2), min_size=1, max_size=30), st.integers(1, 5))
def test_columns_ask_everything_once_about_one_list_of_images_each_slot(lists: list[Any], batch_size: int) -> None:
    questions = [question(*images) for images in lists]
    columns = plan_columns(questions, range(len(questions)), batch_size)
    asked = Counter(number for column in columns for batch in column.batches for number in batch)
    assert asked == Counter(range(len(questions)))
    for column in columns:
        first = [image_keys(questions[number].images) for number in column.batches[0]]
        assert len(first) <= batch_size
        assert len({bool(keys) for keys in first}) == 1
        for batch in column.batches:
            assert [image_keys(questions[number].images) for number in batch] == first
    with_images = [column for column in columns if questions[column.batches[0][0]].images]
    distinct = {tuple(images) for images in lists if images}
    assert sum(len(column.batches[0]) for column in with_images) == len(distinct)  # each list is encoded once


def test_a_block_has_enough_images_for_a_batch_of_them() -> None:
    """18 questions about each image: 4 batches of 3 rows would all be about one image."""
    questions = [question(str(number // 18), group=number // 18) for number in range(18 * 7)]
    assert [block.size for block in plan_blocks(questions, 12)] == [18] * 7
    assert [block.size for block in plan_blocks(questions, 12, lists=3)] == [54, 54, 18]
    assert make_plan(questions, "cpu", batch_size=3).blocks == plan_blocks(questions, 12, lists=3)
    about_one = [question("a") for _ in range(100)]
    assert [block.size for block in plan_blocks(about_one, 4, lists=3)] == [32, 32, 32, 4]


def test_longer_texts_share_a_batch_and_batches_are_even() -> None:
    questions = [question(str(n), text="x" * (n % 6)) for n in range(18)]
    columns = plan_columns(questions, range(18), 16)
    assert [len(column.batches[0]) for column in columns] == [9, 9]
    lengths = [len(questions[number].text) for column in columns for number in column.batches[0]]
    assert lengths == sorted(lengths, reverse=True)


def test_other_stop_rules_get_columns_of_their_own() -> None:
    columns = plan_columns([question("a"), question("a", stop=up_to(9))], range(2), 9)
    assert [column.batches for column in columns] == [((0,),), ((1,),)]
    with pytest.raises(InputError, match="at least 1 token"):
        up_to(0)


def test_a_batch_has_at_least_one_row() -> None:
    assert make_plan([question()], "cpu").batch_size == 9
    with pytest.raises(InputError, match="at least 1 row"):
        make_plan([question()], "cpu", batch_size=-1)


def test_images_come_first_or_where_their_marks_are() -> None:
    image = {"type": "image"}

    def text(words: str) -> dict[str, str]:
        return {"type": "text", "text": words}

    assert chat_content(question("a", "b", text="Q")) == [image, image, text("Q")]
    assert chat_content(question("a", "b", text="1 <image> 2 <image>")) == [text("1 "), image, text(" 2 "), image]
    assert chat_content(question("a", "b", text="one <image>")) == [image, image, text("one <image>")]
    assert chat_content(question("a", text="a <image>", marks=False)) == [image, text("a <image>")]
    assert chat_content(question(text="<image>")) == [text("<image>")]


# --- the stop rule of Yes/No answers ---


@given(st.text("YyEeSsNnOo ,.\n", max_size=10) | st.sampled_from(["yes, it is", "no\n, x", "Yes.", "NO", "yes,"]))
def test_stopping_early_never_changes_the_verdict(reply: str) -> None:
    stopped = next((reply[:end] for end in range(len(reply)) if verdict_is_fixed(reply[:end])), reply)
    assert read_answer(stopped.strip()) == read_answer(reply.strip())


def test_yes_and_no_stop_at_once() -> None:
    assert verdict_is_fixed("Yes") and verdict_is_fixed("No") and verdict_is_fixed("\nNo")


@pytest.mark.parametrize(
    ("text", "yes", "no", "disagrees"),
    [
        ("Yes", 2.0, 1.0, False),
        ("No", 2.0, 1.0, True),
        ("Yes", 1.0, 2.0, True),
        ("maybe", 1.0, 2.0, False),
    ],
)
def test_logits_against_the_answer(text: str, yes: float, no: float, disagrees: bool) -> None:
    answer = Answer(text, yes, no)
    assert answer.logits_disagree is disagrees
    assert answer.fields == {"prediction": text, "yes_logit": yes, "no_logit": no, "margin": yes - no}
    assert Answer(text).fields == {"prediction": text}


# --- progress ---


def test_a_log_file_gets_plain_lines_the_first_after_five_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("transformers_agci.inference.progress.time.monotonic", lambda: clock[0])
    progress = Progress(1000)
    told = []
    for seconds in range(1, 241):
        clock[0] = float(seconds)
        progress.add(2)
        said = capsys.readouterr().err
        assert "\r" not in said
        if said:
            told.append((seconds, said))
    assert [seconds for seconds, _ in told] == [5, 15, 30, 60, 120, 180, 240]
    assert told[0][1] == "agci: 10 of 1000 rows, 2.0 rows/s, 8 min left\n"
    assert progress.done == 480
    progress.say("rows.json:3: broken")
    assert capsys.readouterr().err == "rows.json:3: broken\n"
    progress.add(520)
    progress.close()
    assert capsys.readouterr().err == "agci: 1000 of 1000 rows, 4.2 rows/s\n"


def test_where_a_second_does_little_it_is_seconds_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("transformers_agci.inference.progress.time.monotonic", lambda: clock[0])
    progress = Progress(300, unit="item")
    for clock[0], items in ((6.0, 0), (25.0, 1), (125.0, 2)):
        progress.add(items)
    assert capsys.readouterr().err.splitlines() == [
        "agci: 0 of 300 items",
        "agci: 1 of 300 items, 25.0 s/item, 2 h 5 min left",
        "agci: 3 of 300 items, 41.7 s/item, 3 h 26 min left",
    ]


def test_a_run_of_a_moment_leaves_no_progress_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2)
    progress.add(2)
    progress.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", ["closed", "none"])
def test_nobody_need_listen(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("sys.stderr", os.fdopen(writer, "w") if stream == "closed" else None)
    monkeypatch.setattr("transformers_agci.inference.progress.LOG_AT", (0.0,))
    progress = Progress(2)
    progress.add(1)
    progress.say("rows.json:1: broken")
    progress.add(1)
    progress.close()
    assert progress.done == 2


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(1, shown=False)
    bar.add(1)
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_notebook_without_ipywidgets_gets_a_bar_and_no_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers_agci.inference.progress._in_notebook", lambda: True)
    monkeypatch.setattr("transformers_agci.inference.progress.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # tqdm.auto: "IProgress not found. Please update jupyter and ipywidgets."
        progress = Progress(2)
    progress.add(2)
    said = capsys.readouterr().err
    progress.close()
    assert "0/2" in said and "tqdm.auto" not in sys.modules


def test_questions_of_equally_many_tokens_share_a_batch() -> None:
    texts = ("a" * 20, "a b c d e f g h i", "a" * 16, "a b c d e f g")  # longest first by characters
    asked = [Question({}, f"x:{n}", text, ()) for n, text in enumerate(texts)]

    def pairs(*length: Callable[[str], int]) -> list[list[int]]:
        return sorted(sorted(column.batches[0]) for column in plan_columns(asked, range(4), 2, *length))

    assert pairs() == [[0, 1], [2, 3]]
    assert pairs(lambda text: len(text.split())) == [[0, 2], [1, 3]]
