"""LLaVA's llava_test_CQM-A.json, built from ScienceQA's own files (whose licence forbids that we ship it)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers_agci.data.rows import Row
from transformers_agci.errors import InputError, short
from transformers_agci.storage.atomic import write_output
from transformers_agci.storage.json_file import json_bytes, read_json_object

LETTERS = "ABCDE"


def conversations(problems: Path, pid_splits: Path, split: str = "test") -> list[Row]:
    """One conversation per question of a split, in the split's order; the second turn is the right letter.

    Raises InputError that names the file and the question where something is missing.
    """
    by_key, splits = read_json_object(problems), read_json_object(pid_splits)
    keys = splits.get(split)
    if not isinstance(keys, list):
        raise InputError(f"{pid_splits}: there is no split {split!r}; the file has: {', '.join(splits)}.")
    return [_conversation(by_key, key, problems) for key in keys]


def write_questions(rows: list[Row], output: Path) -> None:
    """Write `conversations` to `output`, whole or not at all."""
    write_output(output, json_bytes(rows, indent=1, ascii_only=False))


def _conversation(by_key: Mapping[str, Any], key: Any, problems: Path) -> Row:
    problem = by_key.get(str(key))
    if not isinstance(problem, dict):
        raise InputError(f"{problems}: question {short(key)} of the split is missing.")
    question, choices, answer = problem.get("question"), problem.get("choices"), problem.get("answer")
    listed = choices[: len(LETTERS)] if isinstance(choices, list) else []
    if not isinstance(question, str) or not isinstance(answer, int) or not 0 <= answer < len(listed):
        raise InputError(
            f"{problems}: question {short(key)} needs a 'question' (text), 'choices' (a list) and an 'answer' (the "
            f"index of one of the first {len(LETTERS)} choices)."
        )
    context = str(problem.get("hint") or "").strip()
    listing = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, listed, strict=False))
    text = (f"Context: {context}\n" if context else "") + f"{question}\n{listing}"
    row: Row = {"id": str(key)}
    if problem.get("image"):
        row["image"] = f"{key}/{problem['image']}"
        text = f"<image>\n{text}"
    row["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": LETTERS[answer]}]
    return row
