"""ScienceQA: 4,241 multiple-choice questions, 2,017 with an image; scored as LLaVA's eval_science_qa.py does."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.rows import Row, SourcedRow
from transformers_agci.data.scienceqa import conversations
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Item, Prompt, Rows, Score, Scoring
from transformers_agci.experiments.benchmarks.joining import answer_of, check_join, first_keys, identity_of, read_scored
from transformers_agci.storage.reading import read_json

LETTERS = "ABCDE"
FAILED = "FAILED"
INSTRUCTION = "Answer with the option's letter from the given choices directly."
STATEMENT = re.compile(r"The answer is ([A-Z]).")  # the last dot is any character but a newline, as officially


class Problem(NamedTuple):
    """The key of one question."""

    answer: int  # index of the right choice
    choices: int  # how many there are
    has_image: bool


def read_answer(text: str) -> str:
    """The letter that the official program reads from an answer, or "FAILED".

    >>> [read_answer(text) for text in ("B", "B. no", "The answer is B.", "The answer is B", "b")]
    ['B', 'B', 'B', 'FAILED', 'FAILED']
    """
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    letters = STATEMENT.findall(text)
    return letters[0] if len(letters) == 1 else FAILED


def score(inputs: Inputs) -> Score:
    """Accuracy over all items, and over those whose prompt has an image."""
    answers = read_scored(*inputs.answers)
    problems = _problems(inputs, answers)
    given = [identity_of(sourced, "question_id", "id") for sourced in answers]
    asked = list(problems)
    if not inputs.official:
        with_image = [key for key, problem in problems.items() if problem.has_image]
        if set(given) == set(with_image):  # the published scripts ask the image items only
            asked = with_image
        check_join(inputs, asked, list(zip(given, answers, strict=True)))
    by_key = dict(zip(given, answers, strict=True))  # the last of duplicates wins
    items = [_item(key, problems[key], by_key.get(key)) for key in asked]
    return _result(items, inputs, given)


def _result(items: Sequence[Item], inputs: Inputs, given: Sequence[Any]) -> Score:
    images = [item for item in items if item.fields["image"]]
    correct, image_correct = (sum(int(item.score) for item in group) for group in (items, images))
    notes = []
    unanswered = {item.id for item in items} - set(given)
    if unanswered:
        notes.append(f"{len(unanswered)} questions have no answer: wrong in the total, left out of the image figure.")
    if not images:
        notes.append("No prompt holds <image>: there is no image figure (the official program divides by zero).")
    every = "image items only" if len(images) == len(items) else f"{len(images)} with an image"
    return Score(
        variant=f"{len(items)} items, {every}" + ("" if inputs.questions else f", split {inputs.split}"),
        figures={
            "accuracy_pct": correct / len(items) * 100,
            "image_accuracy_pct": image_correct / len(images) * 100 if images else None,
            "correct": correct,
            "count": len(items),
            "image_correct": image_correct,
            "image_count": len(images),
            "unparsed": sum(item.parsed == FAILED for item in items),
        },
        items=items,
        notes=tuple(notes),
    )


def _item(key: Any, problem: Problem, answer: SourcedRow | None) -> Item:
    letter = FAILED if answer is None else read_answer(answer_of(answer, "prediction", "text"))
    right = letter == LETTERS[problem.answer] and letter in LETTERS[: problem.choices]
    image = answer is not None and _is_multimodal(answer, problem)
    return Item(key, letter, LETTERS[problem.answer], float(right), key, key, fields={"image": image})


def _is_multimodal(answer: SourcedRow, problem: Problem) -> bool:
    """The official test, on the prompt that was stored; the question itself decides where none was."""
    prompt = answer.row.get("prompt")
    if prompt is None and "conversations" in answer.row:
        prompt = _human(answer.row, answer.where)
    return "<image>" in prompt if isinstance(prompt, str) else problem.has_image


def _problems(inputs: Inputs, answers: Sequence[SourcedRow]) -> dict[Any, Problem]:
    """The key of every question that is to be scored, in the order of its file."""
    if inputs.problems or inputs.splits:
        if not (inputs.problems and inputs.splits) or inputs.questions:
            raise InputError("scienceqa needs `problems` and `splits` together, or `questions`.")
        return _from_splits(inputs.problems, inputs.splits, inputs.split)
    if inputs.questions:
        return _from_conversations(read_scored(*inputs.questions))
    if all("conversations" in sourced.row for sourced in answers):
        return _from_conversations(answers)
    raise InputError(
        "scienceqa needs the questions: `problems` problems.json `splits` pid_splits.json, or `questions` "
        "llava_test_CQM-A.json (answers of the published scripts carry them)."
    )


def _from_splits(problems: Path, splits: Path, split: str) -> dict[Any, Problem]:
    by_split, by_key = read_json(splits), read_json(problems)
    if not isinstance(by_split, dict) or not isinstance(by_split.get(split), list):
        there = ", ".join(by_split) if isinstance(by_split, dict) else "no splits"
        raise InputError(f"{splits}: there is no split '{split}'; the file has: {there}.")
    if not by_split[split] or not all(isinstance(key, str | int) for key in by_split[split]):
        raise InputError(f"{splits}: split '{split}' must be a list of question ids, with at least one.")
    keys = list(dict.fromkeys(by_split[split]))
    lost = [key for key in keys if not isinstance(by_key, dict) or key not in by_key]
    if lost:
        raise InputError(f"{problems}: {len(lost)} questions of split '{split}' are missing ({first_keys(lost)}).")
    return {key: _problem(by_key[key], f"{problems.name}: question {short(key)}") for key in keys}


def _problem(row: Any, where: str) -> Problem:
    answer, choices = (row.get("answer"), row.get("choices")) if isinstance(row, dict) else (None, None)
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
        raise InputError(f"{where} needs 'choices' (a list) and 'answer' (the index 0 to 4 of the right one).")
    return Problem(answer, len(choices), bool(row.get("image")))


def _from_conversations(rows: Sequence[SourcedRow]) -> dict[Any, Problem]:
    problems = {}
    for sourced in rows:
        gold = _turn(sourced.row, "gpt", sourced.where)
        if gold not in tuple(LETTERS):
            raise InputError(f"{sourced.where}: the 'gpt' turn must be a letter A to E, but is {short(gold)}.")
        choices = choice_count(_human(sourced.row, sourced.where))
        problems[identity_of(sourced, "id", "question_id")] = Problem(
            LETTERS.index(gold), choices, "image" in sourced.row
        )
    return problems


def choice_count(question: str) -> int:
    """How many choices a question lists, one "A. ..." after the other; a choice may hold line breaks.

    >>> choice_count("Which is it? Pick one.\\nA. this\\nor that\\nB. that")
    2
    """
    at = question.rfind("\nA. ")
    count = 0
    while at >= 0 and count < len(LETTERS):
        count += 1
        at = question.find(f"\n{LETTERS[count : count + 1]}. ", at + 1) if count < len(LETTERS) else -1
    return count or len(LETTERS)


def _human(row: Row, where: str) -> str:
    return _turn(row, "human", where)


def _turn(row: Row, speaker: str, where: str) -> str:
    turns = row.get("conversations")
    if isinstance(turns, list):
        for turn in turns:
            if isinstance(turn, Mapping) and turn.get("from") == speaker and isinstance(turn.get("value"), str):
                return str(turn["value"])
    raise InputError(f"{where}: 'conversations' must hold a '{speaker}' turn with its text in 'value'.")


def build_prompt(row: Row, protocol: str, mode: str) -> Prompt | None:
    """LLaVA's prompt. The paper asked the items with an image only, and cut answers at 128 tokens."""
    image = row.get("image")
    if protocol == "paper" and not image:
        return None
    question = _human(row, f"question {short(row.get('id'))}").replace("<image>", "").strip()
    return Prompt(
        f"{question}\n{INSTRUCTION}",
        question,
        (image,) if image else (),
        row.get("id"),
        128 if protocol == "paper" else 1024,
    )


def read_questions(path: Path, setting: str | None = None) -> Sequence[SourcedRow]:
    """Questions from llava_test_CQM-A.json, or from a folder that holds it, or problems.json and pid_splits.json."""
    if not path.is_dir():
        return read_scored(path)
    made = path / "llava_test_CQM-A.json"
    if made.is_file():
        return read_scored(made)
    rows = conversations(path / "problems.json", path / "pid_splits.json")
    return [SourcedRow(f"problems.json: question {row['id']}", row) for row in rows]


def looks_like(row: Row) -> bool:
    """Rows of ScienceQA: conversations, or an id of digits in text with an answer that begins with a letter A to E."""
    key, answer = row.get("question_id"), row.get("text")
    return "conversations" in row or (
        isinstance(key, str) and key.isdecimal() and isinstance(answer, str) and answer[:1] in tuple(LETTERS)
    )


BENCHMARK = Benchmark(
    "scienceqa",
    "ScienceQA",
    Rows(read_questions, build_prompt, looks_like),
    Scoring(score, "accuracy_pct", options=("questions", "problems", "splits", "split")),
    images=("images/test", "images", "test", ""),
)


LETTERS = "ABCDE"
