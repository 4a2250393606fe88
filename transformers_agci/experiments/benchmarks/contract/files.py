"""Reading what is scored: question and answer files of any name, and the join of answers to questions."""

import json
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.rows import read_rows
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.contract.declaration import Inputs, Row

SHOWN_KEYS = 5


class Read(NamedTuple):
    """A row and where it stands ("answers.jsonl:12")."""

    where: str
    row: Row


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    text = _text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: this is not a JSON file ({error}).") from None


def read_scored(path: Path) -> list[Read]:
    """All rows of a question or answer file, whatever it is called: JSON Lines, a JSON array, or parquet.

    An empty string in place of a row, as the published MMMU-Pro scripts write one for each question that they skip,
    is read as an empty row.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    if path.suffix in (".gz", ".parquet"):
        rows = [Read(where, row) for where, row in read_rows(path)]
    elif _starts_with(path, b"PAR1"):
        raise InputError(f"{path}: this is a parquet file; give it the ending .parquet.")
    else:
        text = _text(path)
        rows = _array(text, path) if text.lstrip().startswith("[") else _lines(text, path)
    if not rows:
        raise InputError(f"{path}: the file holds no rows.")
    return rows


def _lines(text: str, path: Path) -> list[Read]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON text may hold U+2028 and the like
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: this line is not valid JSON ({error}).") from None
            rows.append(Read(where, _object(value, where)))
    return rows


def _array(text: str, path: Path) -> list[Read]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the JSON array is malformed or cut off ({error}).") from None
    return [Read(f"{path.name}:row {n}", _object(v, f"{path.name}:row {n}")) for n, v in enumerate(values, 1)]


def _object(value: Any, where: str) -> Row:
    if value == "":
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: a row must be a JSON object, but this is {type(value).__name__}.")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: this file is not UTF-8 text ({error}).") from None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}).") from None


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def field_of(read: Read, *names: str) -> Any:
    """The value of the first of `names` that the row has."""
    for name in names:
        if name in read.row:
            return read.row[name]
    there = ", ".join(sorted(read.row)) or "none"
    raise InputError(f"{read.where}: the field {' or '.join(map(repr, names))} is missing; the row has: {there}.")


def identity_of(read: Read, *names: str) -> str | int:
    """The id in the first of `names` that the row has: text or a whole number."""
    value = field_of(read, *names)
    if not isinstance(value, str | int):
        raise InputError(f"{read.where}: the id in {names[0]!r} must be text or a number, but is {shown(value)}.")
    return value


def answer_of(read: Read, *names: str) -> str:
    """The model's answer as it stands: the first of `names` that the row has; it must be text."""
    value = field_of(read, *names)
    if not isinstance(value, str):
        raise InputError(f"{read.where}: the answer must be text, but is {shown(value)}; write '' for an empty answer.")
    return value


def check_known(inputs: Inputs, known: Container[Hashable], given: Iterable[Hashable]) -> None:
    """InputError for answers to questions that are not there: all that is checked with --official."""
    unknown = [key for key in dict.fromkeys(given) if key not in known]
    if unknown:
        raise InputError(
            f"{names_of(inputs.answers)}: {len(unknown)} answers are to unknown questions ({first_keys(unknown)})."
        )


def check_join(inputs: Inputs, expected: Iterable[Hashable], given: Iterable[Hashable]) -> None:
    """InputError unless every expected key is answered exactly as often as it is asked, and nothing else is."""
    wanted, found = Counter(iter(expected)), Counter(iter(given))  # of a mapping: its keys
    kinds = {
        "unknown": [k for k in found if k not in wanted],
        "duplicate": [k for k in found if k in wanted and found[k] > wanted[k]],
        "missing": [] if inputs.partial else [k for k in wanted if found[k] < wanted[k]],
    }
    problems = [f"{len(keys)} {kind} ({first_keys(keys)})" for kind, keys in kinds.items() if keys]
    if problems:
        raise InputError(
            f"{names_of(inputs.answers)}: the answers do not fit the {sum(wanted.values())} questions: "
            f"{'; '.join(problems)}. Each question must be answered once; --official "
            "scores incomplete or repeated answers as the official program does, where it accepts them."
        )


def first_keys(keys: Sequence[Hashable]) -> str:
    """The first few keys, for a message."""
    more = ", ..." if len(keys) > SHOWN_KEYS else ""
    return ", ".join(shown(key) for key in keys[:SHOWN_KEYS]) + more


def shown(value: Any, limit: int = 80) -> str:
    """`value` as a short ASCII text: answers may hold anything."""
    text = ascii(value)
    return text if len(text) <= limit else text[:limit] + "..."


def names_of(paths: Sequence[Path]) -> str:
    """The names of files, for a message."""
    return ", ".join(str(path) for path in paths)
