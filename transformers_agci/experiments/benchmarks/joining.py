"""Question and answer files of any name: their rows, the fields of a row, the join of answers to questions."""

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers_agci.data.rows import SourcedRow, read_rows
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.benchmarks.declaration import Inputs

SHOWN_KEYS = 5

Key = TypeVar("Key", bound=Hashable)
Answered = Sequence[tuple[Hashable, SourcedRow]]  # the key of every answer, and its row


def read_scored(*paths: Path) -> list[SourcedRow]:
    """All rows of question or answer files, whatever they are called: JSON Lines, JSON arrays, or parquet.

    An empty text in place of a row, as the published MMMU-Pro scripts write one for each question that they skip,
    is read as an empty row. NaN passes: the official programs take it, and no figure is made of it.
    """
    return [row for path in paths for row in read_rows(path, any_name=True, empty_text_as_row=True, nan=True)]


def field_of(row: SourcedRow, *names: str) -> Any:
    """The value of the first of `names` that the row has."""
    for name in names:
        if name in row.row:
            return row.row[name]
    there = ", ".join(sorted(row.row)) or "none"
    raise InputError(f"{row.where}: the field {' or '.join(map(repr, names))} is missing; the row has: {there}.")


def identity_of(row: SourcedRow, *names: str) -> str | int:
    """The id in the first of `names` that the row has: text or a whole number."""
    value = field_of(row, *names)
    if not isinstance(value, str | int):
        raise InputError(f"{row.where}: the id in {names[0]!r} must be text or a number, but is {short(value)}.")
    return value


def answer_of(row: SourcedRow, *names: str) -> str:
    """The model's answer as it stands: the first of `names` that the row has; it must be text."""
    value = field_of(row, *names)
    if not isinstance(value, str):
        raise InputError(f"{row.where}: the answer must be text, but is {short(value)}; write '' for an empty answer.")
    return value


def by_key(
    rows: Iterable[SourcedRow], key: Callable[[SourcedRow], Key], official: bool = False
) -> dict[Key, SourcedRow]:
    """The rows of a question file by their key; InputError for two of one key (`official`: the last one counts)."""
    found: dict[Key, SourcedRow] = {}
    for row in rows:
        name = key(row)
        if name in found and not official:
            raise InputError(f"{row.where}: the question {short(name)} is that of {found[name].where} already.")
        found[name] = row
    return found


def check_known(inputs: Inputs, known: Container[Hashable], answers: Answered) -> None:
    """InputError for answers to questions that are not there: all that is checked with `official`."""
    unknown = [(key, row) for key, row in answers if key not in known]
    if unknown:
        raise InputError(
            f"{names_of(inputs.answers)}: {len(unknown)} answers are to unknown questions ({_listed(unknown)})."
        )


def check_join(inputs: Inputs, expected: Iterable[Hashable], answers: Answered) -> None:
    """InputError unless every expected key is answered exactly as often as it is asked, and nothing else is."""
    wanted, found = Counter(iter(expected)), Counter(key for key, _ in answers)  # of a mapping: its keys
    last = dict(answers)
    kinds: dict[str, list[tuple[Hashable, SourcedRow | None]]] = {
        "unknown": [(k, last[k]) for k in found if k not in wanted],
        "duplicate": [(k, last[k]) for k in found if k in wanted and found[k] > wanted[k]],
        "missing": [] if inputs.partial else [(k, None) for k in wanted if found[k] < wanted[k]],
    }
    problems = [f"{len(keys)} {kind} ({_listed(keys)})" for kind, keys in kinds.items() if keys]
    if problems:
        raise InputError(
            f"{names_of(inputs.answers)}: the answers do not fit the {sum(wanted.values())} questions: "
            f"{'; '.join(problems)}. Each question must be answered once; `official` "
            "scores incomplete or repeated answers as the official program does, where it accepts them."
        )


def first_keys(keys: Sequence[Hashable]) -> str:
    """The first few keys, for a message."""
    return _listed([(key, None) for key in keys])


def _listed(keys: Sequence[tuple[Hashable, SourcedRow | None]]) -> str:
    """The first few keys, with the row that carries each."""
    texts = [f"{short(key)} in {row.where}" if row else short(key) for key, row in keys[:SHOWN_KEYS]]
    return ", ".join(texts) + (", ..." if len(keys) > SHOWN_KEYS else "")


def names_of(paths: Sequence[Path]) -> str:
    """The names of files, for a message."""
    return ", ".join(str(path) for path in paths)
