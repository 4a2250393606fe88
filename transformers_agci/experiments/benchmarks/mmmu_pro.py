"""MMMU-Pro: 1,730 questions with up to ten options, or as a screenshot; scored as MMMU's mmmu-pro/evaluate.py does.

Where the official parser draws a letter at random, the answer counts as undecided, with the value of the expectation.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_agci.data.rows import Row, SourcedRow
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Item, Prompt, Rows, Score, Scoring
from transformers_agci.experiments.benchmarks.joining import (
    by_key,
    check_join,
    check_known,
    field_of,
    identity_of,
    names_of,
    read_scored,
)

ROWS = 1730
SETTINGS = ("standard (10 options)", "standard (4 options)", "vision")
INSTRUCTIONS = {
    ("standard", "direct"): "Answer with the option letter from the given choices directly.",
    ("vision", "direct"): "Answer with the option letter from the given choices directly. The last line of your "
    "response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options.",
    ("standard", "cot"): "Answer the preceding multiple choice question. The last line of your response should be of "
    "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options. Think step by step "
    "before answering.",
    ("vision", "cot"): "Write out the multiple-choice question in the image and then solve it. The last line of your "
    "response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options. "
    "Think step by step before answering.",
}
TOKENS = {"direct": 128, "cot": 2048}
IMAGE = re.compile(r"<image\s+(\d+)>")

MARKS = (",", ".", "!", "?", ";", ":", "'")  # stripped from an answer one kind after the other
MAX_LITERAL = 100_000  # characters of an options literal; real ones have fewer than 2,000
MAX_OPTIONS = 100
MAX_DEPTH = 20  # brackets or signs within each other


def read_options(value: Any, where: str = "options") -> list[Any]:
    """The options from their list, or from the Python literal that the dataset holds; bounded in size and depth.

    >>> read_options("['red', 'green']")
    ['red', 'green']
    """
    if isinstance(value, str):
        if len(value) > MAX_LITERAL or _depth(value) > MAX_DEPTH:
            raise InputError(
                f"{where}: 'options' is longer than {MAX_LITERAL} characters or nested deeper than "
                f"{MAX_DEPTH}: {short(value)}."
            )
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise InputError(
                f"{where}: 'options' must be the text of a Python list ({type(error).__name__} in {short(value)})."
            ) from None
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_OPTIONS:
        raise InputError(f"{where}: 'options' must be a list of 1 to {MAX_OPTIONS} options, but is {short(value)}.")
    return list(value)


def _depth(literal: str) -> int:
    """An upper bound of the nesting: open brackets, and signs in a row (brackets within texts count as well)."""
    deepest = depth = signs = 0
    for character in literal:
        depth += (character in "([{") - (character in ")]}")
        signs = signs + 1 if character in "+-~" else signs if character.isspace() else 0
        deepest = max(deepest, depth, signs)
    return deepest


def letters_of(options: Sequence[Any]) -> list[str]:
    """A, B, C, ... one for each option."""
    return [chr(ord("A") + place) for place in range(len(options))]


def read_answer(response: str, options: Sequence[Any]) -> str | None:
    """The letter that the official parser finds, None where it draws one at random.

    >>> [read_answer(text, ["red", "green"]) for text in ("Answer: (B)", "A. red", "Answer: B. red", "purple")]
    ['B', 'A', 'B', None]
    """
    letters = letters_of(options)
    _, marker, after = response.rpartition("Answer:")
    if marker:
        named = [letter for letter in letters if letter in after.strip()]
        if len(named) == 1:
            return named[0]
    for mark in MARKS:
        response = response.strip(mark)
    response = f" {response} "
    for form, ranked_by in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in letters if form.format(letter) in response]
        if found:
            return max(found, key=lambda letter: response.rfind(ranked_by.format(letter)))
    return _by_text(response, letters, options)


def _by_text(response: str, letters: Sequence[str], options: Sequence[Any]) -> str | None:
    """The option whose text occurs last, in a response of more than five words."""
    if len(response.split()) <= 5:
        return None
    lowered = response.lower()
    backwards = lowered[::-1]  # find is linear in the worst case, rfind is not
    last = {}
    for letter, option in zip(letters, options, strict=True):
        if isinstance(option, str):
            text = option.lower()
            at = backwards.find(text[::-1])
            if at >= 0:
                last[letter] = len(lowered) - at - len(text)
    return max(last, key=lambda letter: last[letter]) if last else None


def score(inputs: Inputs) -> Score:
    """Accuracy with undecided answers at their expectation, the decided ones, and both per subject."""
    rows = read_scored(*inputs.answers)
    answered = [sourced for sourced in rows if sourced.row]
    if not answered:
        raise InputError(f"{names_of(inputs.answers)}: every row is empty.")
    answered = _joined(inputs, answered)
    items = [_item(sourced) for sourced in answered]
    decided = [item for item in items if item.parsed is not None]
    subjects: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        subjects[item.fields["subject"]].append(item)
    figures = {
        **_figures(items),
        "decided_correct": int(sum(item.score for item in decided)),
        "decided": len(decided),
        "skipped": len(rows) - len(answered),
        "by_subject": {subject: _figures(subjects[subject]) for subject in sorted(subjects)},
    }
    variant = inputs.variant or _variant(inputs.answers[0].name, answered)
    notes = []
    if figures["undecided"]:
        notes.append(
            f"{figures['undecided']} answers are undecided and count 1/n each; the official program draws a "
            "letter at random for them, unseeded, so its figure moves from run to run."
        )
    if figures["skipped"]:
        notes.append(
            f"{figures['skipped']} empty rows were not asked (the published scripts skip questions without "
            "exactly one image) and are left out; the official program stops at them."
        )
    if len(rows) != ROWS:
        notes.append(f"The file has {len(rows)} rows; the official program takes {ROWS} only.")
    return Score(f"{variant}, {len(items)} questions", figures, items, tuple(notes))


def _figures(items: Sequence[Item]) -> Row:
    return {
        "accuracy": sum(item.score for item in items) / len(items),
        "undecided": sum(item.parsed is None for item in items),
        "count": len(items),
    }


def _item(sourced: SourcedRow) -> Item:
    if "options" not in sourced.row:
        raise InputError(
            f"{sourced.where}: the field 'options' is missing. Rows must be the dataset's with 'response' "
            "added; `questions` gives the dataset's rows where they are not."
        )
    options = read_options(sourced.row["options"], sourced.where)
    response = field_of(sourced, "response", "prediction")
    if not isinstance(response, str | dict):
        raise InputError(
            f"{sourced.where}: the response must be text, but is {short(response)}; write '' for an empty one."
        )
    gold = field_of(sourced, "answer")
    letter = read_answer("" if isinstance(response, dict) else response, options)
    chance = 1 / len(options) if gold in letters_of(options) else 0.0
    value = chance if letter is None else float(letter == gold)
    fields = {"score": value, "subject": _subject(sourced.row)}
    return Item(
        sourced.row.get("id"),
        letter,
        gold,
        value,
        sourced.row.get("id"),
        sourced.row.get("id"),
        binary=False,
        fields=fields if letter is None else {"correct": letter == gold, **fields},
    )


def _subject(row: Row) -> str:
    """The subject field, else what stands in the id: test_History_1 -> History."""
    subject = row.get("subject")
    if isinstance(subject, str):
        return subject
    found = re.fullmatch(r"[^_]+_(.+)_\d+", str(row.get("id")))
    return found.group(1) if found else "unknown"


def _joined(inputs: Inputs, answered: list[SourcedRow]) -> list[SourcedRow]:
    """Rows with their question. By default each id once; with `questions` each question answered."""
    given = [(identity_of(sourced, "id"), sourced) for sourced in answered]
    if not inputs.questions:
        if not inputs.official:
            check_join(inputs, dict(given), given)
        return answered
    questions = by_key(read_scored(*inputs.questions), lambda sourced: identity_of(sourced, "id"), inputs.official)
    if inputs.official:
        check_known(inputs, questions, given)
    else:
        check_join(inputs, questions, given)
    for key, sourced in given:
        if "options" not in sourced.row:  # a fault in the questions is theirs
            read_options(field_of(questions[key], "options"), questions[key].where)
    return [SourcedRow(sourced.where, {**questions[key].row, **sourced.row}) for key, sourced in given]


def _variant(name: str, rows: Sequence[SourcedRow]) -> str:
    """Setting and mode, from the file's name as far as it tells them, else from the rows."""
    mode = next((mode for mode in ("cot", "direct") if f"_{mode}" in name), "mode unknown")
    if "vision" in name:
        return f"vision, {mode}"
    ten = next((n for n in ("10", "4") if f"({n} options)" in name or f"-{n}opt" in name), None)
    if ten is None and "standard" not in name:
        return f"setting unknown (the file's name does not tell it), {mode}"
    if ten is None:
        most = max(len(read_options(sourced.row.get("options"), sourced.where)) for sourced in rows)
        ten = "10" if most > 4 else "4"
    return f"standard ({ten} options), {mode}"


def build_prompt(row: Row, protocol: str, mode: str) -> Prompt | None:
    """The dataset's row as a prompt; the paper's scripts asked the rows with exactly one image only."""
    where = f"MMMU-Pro question {short(row.get('id'))}"
    if "question" not in row:
        return Prompt(INSTRUCTIONS["vision", mode], "", (_image(row, "image", where),), row.get("id"), TOKENS[mode])
    options = read_options(row.get("options"), where)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters_of(options), options, strict=True))
    question = f"{row['question']}\n{listed}"
    numbers = IMAGE.findall(question)
    if protocol == "paper" and len(numbers) != 1:
        return None
    images = tuple(_image(row, f"image_{int(number)}", where) for number in numbers)
    question = IMAGE.sub("<image>", question)
    return Prompt(f"{question}\n{INSTRUCTIONS['standard', mode]}", question, images, row.get("id"), TOKENS[mode])


def _image(row: Row, name: str, where: str) -> str | bytes:
    value = row.get(name)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes):
        raise InputError(f"{where}: there is no image in '{name}'.")
    return value


def read_questions(path: Path, setting: str | None = None) -> Sequence[SourcedRow]:
    """Rows of one file, or of the parquet files in a folder or, in a clone of the data set, in the setting's folder."""
    if not path.is_dir():
        return read_scored(path)
    of_setting = path / (setting or SETTINGS[0])
    folder = of_setting if of_setting.is_dir() else path
    rows = read_scored(*sorted(folder.glob("*.parquet")))
    if not rows:
        raise InputError(
            f"{folder}: the folder holds no parquet files. A clone of MMMU/MMMU_Pro has them in folders "
            f"called {', '.join(map(repr, SETTINGS))}."
        )
    return rows


def looks_like(row: Row) -> bool:
    """Rows of MMMU-Pro: options in one text, or its form of id with a response."""
    return isinstance(row.get("options"), str | list) or (
        "response" in row and re.fullmatch(r"(test|validation|dev)_.+_\d+", str(row.get("id"))) is not None
    )


BENCHMARK = Benchmark(
    "mmmu_pro",
    "MMMU-Pro",
    Rows(read_questions, build_prompt, looks_like),
    Scoring(score, "accuracy", options=("questions",)),
    folder="MMMU",
    modes=("direct", "cot"),
    settings=SETTINGS,
    hub_id="MMMU/MMMU_Pro",
)
