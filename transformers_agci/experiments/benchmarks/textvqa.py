"""TextVQA: reading text in images; 5,000 questions with ten human answers each, scored as LLaVA scores it."""

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path

from transformers_agci.data.rows import Row, SourcedRow
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.contractions import CONTRACTIONS
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Item, Prompt, Rows, Score, Scoring
from transformers_agci.experiments.benchmarks.joining import (
    answer_of,
    check_join,
    check_known,
    field_of,
    identity_of,
    read_scored,
)
from transformers_agci.storage.reading import read_json

INSTRUCTION = "Answer the question using a single word or phrase."
OCR = "Reference OCR token:"

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DOT = re.compile(r"\.(?!\d)")
DOTS_REMOVED = 32  # the official program passes re.UNICODE, which is 32, where re.sub takes a count
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
ARTICLES = {"a", "an", "the"}
HUMANS = 10


def normalise(text: str) -> str:
    """An answer as the VQA evaluation compares it.

    >>> [normalise(text) for text in ("The Apple!", "two", "hershey's", "1,000", "dont")]
    ['apple', '2', "hershey 's", '1000', "don't"]
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = DOT.sub("", _without_punctuation(text), count=DOTS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Marks that stand beside a space anywhere vanish everywhere, the others become spaces."""
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space else " ")
    return result


def soft_score(answer: str, humans: Sequence[str]) -> float:
    """How well an answer agrees with the ten human ones: 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3, 4 or more matches.

    Each human is left out in turn and min(1, matches among the others / 3) averaged, in the humans' order, so that
    not even the last bit differs from the official sum.
    """
    wanted = normalise(answer)
    same = [human == wanted for human in _normalised(tuple(humans))]
    if not any(same):
        return 0.0
    shares = [min(1, float(sum(same) - left_out) / 3) for left_out in same]
    return sum(shares) / len(shares)


@lru_cache(maxsize=1 << 14)
def _normalised(humans: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(normalise(human) for human in humans)


def question_of(prompt: str) -> str | None:
    """The lower-cased question that a stored prompt asks; None where the official program gives up."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        question = _between(prompt, "Question: ", " Short answer:")
    elif f"{OCR} " in prompt and len(lines) == 3:
        question = lines[1] if prompt.startswith(OCR) else lines[0]
    elif len(lines) == 2:
        question = lines[0]
    else:
        question = None
    return None if question is None else question.lower()


def _between(text: str, before: str, after: str) -> str | None:
    """What stands between the first `before` and the next `after`; None where there is no such pair."""
    start = text.find(before) + len(before)
    end = text.find(after, start) if start >= len(before) else -1
    return text[start:end] if end >= 0 else None


def score(inputs: Inputs) -> Score:
    """The mean soft score."""
    if inputs.annotations is None:
        raise InputError("textvqa needs `annotations` TextVQA_0.5.1_val.json, the file with the human answers.")
    asked, humans = _annotations(inputs.annotations)
    answers = read_scored(*inputs.answers)
    keys = [_key(sourced) for sourced in answers]
    if inputs.official:
        check_known(inputs, humans, list(zip(keys, answers, strict=True)))
    else:
        check_join(inputs, asked, list(zip(keys, answers, strict=True)))
    items = [_item(sourced, key, humans[key]) for sourced, key in zip(answers, keys, strict=True)]
    accuracy = sum(item.score for item in items) / len(items)
    notes = (
        ()
        if len(items) == len(asked)
        else (
            f"{len(asked) - len(items)} of {len(asked)} questions have no answer; the mean is over the answers given.",
        )
    )
    return Score(f"{len(items)} answers", {"accuracy": accuracy, "count": len(items)}, items, notes)


def _item(sourced: SourcedRow, key: tuple[str | int, str], humans: list[str]) -> Item:
    answer = answer_of(sourced, "prediction", "text")
    value = soft_score(answer, humans)
    return Item(key[0], normalise(answer), humans, value, key[0], key, binary=False, fields={"question": key[1]})


def _annotations(path: Path) -> tuple[list[Hashable], dict[Hashable, list[str]]]:
    """The keys asked, in order, and the ten answers of each."""
    content = read_json(path)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: TextVQA's annotations are a JSON object with a list 'data'.")
    asked: list[Hashable] = []
    humans: dict[Hashable, list[str]] = {}
    for number, row in enumerate(rows, 1):
        sourced = SourcedRow(f"{path.name}: annotation {number}", row if isinstance(row, dict) else {})
        question, answers = field_of(sourced, "question"), field_of(sourced, "answers")
        if not isinstance(question, str) or not isinstance(answers, list) or len(answers) != HUMANS:
            raise InputError(f"{sourced.where} needs 'question' (text) and exactly {HUMANS} 'answers'.")
        if not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"{sourced.where}: every human answer must be text.")
        key = (identity_of(sourced, "image_id"), question.lower())
        asked.append(key)
        humans[key] = answers
    return asked, humans


def _key(sourced: SourcedRow) -> tuple[str | int, str]:
    """(image id, question). A question row with `prediction` added holds the prompt in `text`."""
    prompt = field_of(sourced, *(("prompt", "text", "qs") if "prediction" in sourced.row else ("prompt",)))
    question = question_of(prompt) if isinstance(prompt, str) else None
    if question is None:
        raise InputError(
            f"{sourced.where}: no question can be read from the prompt {short(prompt)}: LLaVA's has two lines "
            f"(question, instruction) or three with '{OCR} ...' before or after the question."
        )
    return identity_of(sourced, "question_id"), question


def build_prompt(row: Row, protocol: str, mode: str) -> Prompt | None:
    """LLaVA's question file holds the finished prompt: question, OCR tokens, instruction."""
    sourced = SourcedRow(f"TextVQA question {short(row.get('question_id'))}", row)
    text, image = field_of(sourced, "text"), field_of(sourced, "image")
    if not isinstance(text, str) or not isinstance(image, str):
        raise InputError(f"{sourced.where}: 'text' and 'image' must be text.")
    return Prompt(text, text.removesuffix(f"\n{INSTRUCTION}"), (image,), image, 128)


def read_questions(path: Path, setting: str | None = None) -> Sequence[SourcedRow]:
    """Questions from one file, or from the folder with llava_textvqa_val_v051_ocr.jsonl."""
    return read_scored(path / "llava_textvqa_val_v051_ocr.jsonl" if path.is_dir() else path)


def looks_like(row: Row) -> bool:
    """Rows of TextVQA: OCR tokens in the prompt, or an image id of sixteen hexadecimal digits as question id."""
    prompt = row.get("prompt", row.get("text"))
    identity = row.get("question_id")
    return (isinstance(prompt, str) and (OCR in prompt or prompt.startswith("OCR tokens: "))) or (
        isinstance(identity, str) and re.fullmatch(r"[0-9a-f]{16}", identity) is not None
    )


BENCHMARK = Benchmark(
    "textvqa",
    "TextVQA",
    Rows(read_questions, build_prompt, looks_like),
    Scoring(score, "accuracy", options=("annotations",)),
    images=("train_images", "images", ""),
    annotations="TextVQA_0.5.1_val.json",
)
