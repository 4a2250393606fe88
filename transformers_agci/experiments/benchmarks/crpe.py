"""CRPE: relations between objects, each question asked with its options in four orders; scored as eval_crpe.py does."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.rows import Row, SourcedRow
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.declaration import (
    Benchmark,
    Inputs,
    Item,
    Prompt,
    Rows,
    Score,
    Scoring,
    Sums,
)
from transformers_agci.experiments.benchmarks.joining import (
    answer_of,
    by_key,
    check_join,
    check_known,
    field_of,
    identity_of,
    read_scored,
)

CATEGORIES = ("exist", "subject", "predicate", "object")
OVERALL = ("subject", "predicate", "object")  # exist stays out of the published average
ROTATIONS = 4
LETTERS = ("A", "B", "C", "D")


class Pair(NamedTuple):
    """A question and the answer to it."""

    question: SourcedRow
    answer: SourcedRow


def is_right(answer: str, correct_option: str) -> bool:
    """Right only when it is the very letter: no other case, no dot, no space.

    >>> [is_right(text, "A") for text in ("A", "a", "A.", "A\\n")]
    [True, False, False, False]
    """
    return len(correct_option) <= 1 and len(answer) <= 1 and answer == correct_option


def score(inputs: Inputs) -> Score:
    """Per category the share of questions whose four rotations are all right."""
    pairs = [pair for part in _parts(inputs) for pair in _pairs(part)]
    categories: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        categories[_text(pair.question, "category")].append(pair)
    items = []
    for name, members in categories.items():
        if len(members) % ROTATIONS:
            raise InputError(
                f"{members[-1].answer.where}: with this last one, category {short(name)} has {len(members)} answers, "
                f"which are not whole groups of {ROTATIONS} rotations; a complete run answers each question four times."
            )
        for start in range(0, len(members), ROTATIONS):
            items += _group(name, start // ROTATIONS, members[start : start + ROTATIONS])
    return _result(items, categories)


def _group(category: str, number: int, members: Sequence[Pair]) -> list[Item]:
    """The items of one question; its point is given on the first of them."""
    rights = [is_right(_answer(pair), _text(pair.question, "correct_option")) for pair in members]
    group = float(all(rights))
    return [
        Item(
            id=field_of(pair.question, "question_id"),
            parsed=_answer(pair),
            gold=pair.question.row["correct_option"],
            score=float(right),
            cluster=str(pair.question.row.get("image", (category, number))),
            key=(category, number, place),
            parts={f"{category}.right": group * (place == 0), f"{category}.questions": float(place == 0)},
            fields={"category": category, "question": number, "question_correct": bool(group)},
        )
        for place, (pair, right) in enumerate(zip(members, rights, strict=True))
    ]


def _result(items: Sequence[Item], categories: dict[str, list[Pair]]) -> Score:
    sums: dict[str, float] = defaultdict(float)
    for item in items:
        for part, value in item.parts.items():
            sums[part] += value
    figures: Row = {"categories": {}}
    for name in sorted(categories, key=_order):
        letters = Counter(_answer(pair) for pair in categories[name])
        figures["categories"][name] = {
            "accuracy": sums[f"{name}.right"] / sums[f"{name}.questions"],
            "questions": int(sums[f"{name}.questions"]),
            "letters": {letter: letters[letter] for letter in sorted(letters) if len(letter) <= 1},
            "longer_than_a_letter": sum(n for answer, n in letters.items() if len(answer) > 1),
        }
    notes = []
    if set(OVERALL) <= set(categories):
        figures["overall"] = overall(sums)
    else:
        notes.append("There is no overall figure: it is the mean of subject, predicate and object.")
    mixed = [name for name, members in categories.items() if _mixes_images(members)]
    if mixed:
        notes.append(
            f"In {', '.join(mixed)} a block of {ROTATIONS} answers holds several images: is the order of "
            "the questions the original one? Rotations are told apart by their order alone."
        )
    questions = sum(figures["categories"][name]["questions"] for name in categories)
    return Score(
        f"{questions} questions x {ROTATIONS} rotations: {', '.join(figures['categories'])}",
        {"count": len(items), **figures},
        items,
        tuple(notes),
    )


def overall(sums: Sums) -> Any:
    """The plain mean of subject, predicate and object; of the categories there are where one of them is missing."""
    there = [part.rpartition(".")[0] for part in sums if part.endswith(".questions")]
    names = OVERALL if set(OVERALL) <= set(there) else sorted(there)
    return sum(sums[f"{name}.right"] / sums[f"{name}.questions"] for name in names) / len(names)


def _order(category: str) -> tuple[int, str]:
    return (CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES), category)


def _mixes_images(members: Sequence[Pair]) -> bool:
    images = [pair.question.row.get("image") for pair in members]
    blocks = (images[start : start + ROTATIONS] for start in range(0, len(images), ROTATIONS))
    return any(len(set(map(str, block))) > 1 for block in blocks)


def _parts(inputs: Inputs) -> list[Inputs]:
    """One part per pair of files: question ids are unique within a file only."""
    if inputs.questions and len(inputs.questions) != len(inputs.answers):
        raise InputError(
            f"crpe: {len(inputs.questions)} `questions` files but {len(inputs.answers)} `answers` files; "
            "give them in pairs, in the same order."
        )
    questions = inputs.questions or (None,) * len(inputs.answers)
    return [
        Inputs((answers,), (asked,) if asked else (), official=inputs.official)
        for answers, asked in zip(inputs.answers, questions, strict=True)
    ]


def _pairs(inputs: Inputs) -> list[Pair]:
    """Answers with their questions: in the order of the questions, with `official` in that of the answers."""
    answers = read_scored(inputs.answers[0])
    given = [(_identity(sourced), sourced) for sourced in answers]
    questions = by_key(_questions(inputs, answers), _identity, inputs.official)
    if not inputs.official:
        check_join(inputs, questions, given)
        answer_by_key = dict(given)
        return [Pair(sourced, answer_by_key[key]) for key, sourced in questions.items()]
    check_known(inputs, questions, given)
    return [Pair(questions[key], sourced) for key, sourced in given]


def _questions(inputs: Inputs, answers: Sequence[SourcedRow]) -> Sequence[SourcedRow]:
    questions = read_scored(inputs.questions[0]) if inputs.questions else answers
    source = inputs.questions[0] if inputs.questions else inputs.answers[0]
    for sourced in questions:
        if "choices" in sourced.row and "text" not in sourced.row:
            raise InputError(
                f"{source}: the *_meta.jsonl files (no rotations) are not for evaluation; "
                "use crpe_exist.jsonl and crpe_relation.jsonl."
            )
        if "correct_option" not in sourced.row or "category" not in sourced.row:
            wanted = "as `questions`" if inputs.questions else "with `questions`, or rows that carry the question"
            raise InputError(
                f"{sourced.where}: 'correct_option' and 'category' are missing; give crpe_exist.jsonl or "
                f"crpe_relation.jsonl {wanted}."
            )
    return questions


def _identity(sourced: SourcedRow) -> str | int:
    return identity_of(sourced, "question_id")


def _text(sourced: SourcedRow, name: str) -> str:
    value = field_of(sourced, name)
    if not isinstance(value, str):
        raise InputError(f"{sourced.where}: '{name}' must be text, but is {short(value)}.")
    return value


def _answer(pair: Pair) -> str:
    """The answer as it stands. In a question row `text` is the question, so it must carry `prediction`."""
    if "correct_option" in pair.answer.row and "prediction" not in pair.answer.row:
        raise InputError(f"{pair.answer.where}: this is a row of the questions without a 'prediction'.")
    return answer_of(pair.answer, "prediction", "text")


def build_prompt(row: Row, protocol: str, mode: str) -> Prompt | None:
    """The text holds the options and the instruction already."""
    sourced = SourcedRow(f"CRPE question {short(row.get('question_id'))}", row)
    image = _text(sourced, "image")
    text = _text(sourced, "text")
    return Prompt(text, text, (image,), image, 128)


def read_questions(path: Path, setting: str | None = None) -> Sequence[SourcedRow]:
    """Questions from one file, or from the folder with crpe_exist.jsonl and crpe_relation.jsonl."""
    if not path.is_dir():
        return read_scored(path)
    files = [path / name for name in ("crpe_exist.jsonl", "crpe_relation.jsonl") if (path / name).is_file()]
    if not files:
        raise InputError(f"{path}: the folder holds neither crpe_exist.jsonl nor crpe_relation.jsonl.")
    return read_scored(*files)


def looks_like(row: Row) -> bool:
    """Rows of CRPE: `correct_option`, or a number for id with a letter for answer."""
    return "correct_option" in row or (isinstance(row.get("question_id"), int) and row.get("text") in LETTERS)


BENCHMARK = Benchmark(
    "crpe",
    "CRPE",
    Rows(read_questions, build_prompt, looks_like),
    Scoring(score, "overall", overall, ("questions",)),
)
