"""Rows of data files: one reader for every format, and the probe's row."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError

ANSWERS = ("Yes", "No")
# The position probe's question (paper, section on the probe dataset).
PROMPT = (
    "Determine if there is a sub-image in the given image that matches the text following.\n"
    "Text: {caption}\n"
    "The answer should only contain 'Yes' or 'No', without reasoning process.\n"
)
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")

Row = dict[str, Any]
OnError = Callable[[InputError], None]


@dataclass(frozen=True)
class ProbeRow:
    """One question of the position probe, or one image of the similarity set.

    A file holds one JSON object per line (JSON Lines, whatever the file is called; an array or parquet is read
    too), and the nine rows of an item, one per position, stand together:

        {"id": 4, "image": "019920000_4.jpg", "caption": "a dog on a beach", "position": "center", "answer": "Yes"}

    id        int    names the composite; unique in its file
    image     str    path below the image folder; our builder and the published sets write <key>_<k>.jpg, k = 0..8
    caption   str    the text that is asked about, not empty
    position  str    where the target stands, one of POSITIONS
    answer    str    "Yes": the caption's image is in the composite at `position`; "No": it is not in it

    `fields` is the row as it was read, further fields included: results repeat it. `where` is "file.json:12".
    """

    id: int
    image: str
    caption: str
    position: str
    answer: str
    fields: Row = field(repr=False, compare=False)
    where: str = field(default="", compare=False)

    @property
    def cell(self) -> int:
        """The row-major number of the position, 0 to 8."""
        return POSITIONS.index(self.position)

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> "ProbeRow":
        """A row from its JSON object; InputError names `where`, the field, and what is allowed."""
        number = require(fields, "id", where)
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(f'{where}: "id" must be a whole number, but is {number!r}.')
        return cls(
            id=number,
            image=require_text(fields, "image", where),
            caption=require_text(fields, "caption", where),
            position=require_one_of(fields, "position", POSITIONS, where),
            answer=require_one_of(fields, "answer", ANSWERS, where),
            fields=dict(fields),
            where=where,
        )


def require(fields: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a field, or an InputError that lists the fields there are."""
    if name not in fields:
        there = ", ".join(sorted(str(key) for key in fields)) or "none"
        raise InputError(f'{where}: the field "{name}" is missing; the row has: {there}.')
    return fields[name]


def require_text(fields: Mapping[str, Any], name: str, where: str) -> str:
    """The value of a field that must be a text with something in it."""
    value = require(fields, name, where)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: "{name}" must be a text that is not empty, but is {value!r}.')
    return value


def require_one_of(fields: Mapping[str, Any], name: str, allowed: tuple[str, ...], where: str) -> str:
    """The value of a field that must be one of a few words."""
    value = require(fields, name, where)
    if value not in allowed:
        raise InputError(f'{where}: "{name}" is {value!r}, but must be one of: {", ".join(allowed)}.')
    return str(value)


def read_probe_rows(path: Path | str, on_error: OnError | None = None) -> list[ProbeRow]:
    """All rows of a probe or similarity file, checked.

    The first bad row raises InputError with file:line and field; with `on_error` bad rows are given to it and left out.
    """
    rows = []
    for where, fields in read_rows(path, on_error):
        try:
            rows.append(ProbeRow.parse(fields, where))
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)
    return rows


def read_rows(path: Path | str, on_error: OnError | None = None) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) for every row of a JSON Lines, JSON array (both also as .gz) or parquet file.

    `where` is "name:line" ("name:row 3" in parquet, counted from 1). Blank lines are passed over. JSON Lines and
    parquet are read as a stream. Raises InputError for a file that is missing, empty or of another kind, and for a
    malformed line; with `on_error` a malformed line is given to it and reading goes on.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: rows are read from {', '.join(SUFFIXES)} only.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    yield from _parquet(path) if path.suffix == ".parquet" else _json(path, on_error)


def _json(path: Path, on_error: OnError | None) -> Iterator[tuple[str, Row]]:
    first = next((line for line in _lines(path) if line.strip()), None)
    if first is None:
        raise _no_rows(path)
    yield from _array(path) if first.lstrip().startswith("[") else _json_lines(path, on_error)


def _json_lines(path: Path, on_error: OnError | None) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            row = _object(json.loads(line), where)
        except (json.JSONDecodeError, RecursionError) as error:
            _report(InputError(f"{where}: this line is not valid JSON ({error})."), on_error)
        except InputError as error:
            _report(error, on_error)
        else:
            yield where, row


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path}: the file holds no rows.")


def _report(error: InputError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path.name}:{number}: this line is not UTF-8 text.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path.name}: the gzip file is broken or truncated after line {number}.") from None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}).") from None


def _array(path: Path) -> Iterator[tuple[str, Row]]:
    text = "".join(_lines(path))
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    at = _skip_space(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        raise _no_rows(path)
    while True:
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path.name}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: the JSON array is malformed or cut off here ({error}).") from None
        yield where, _object(value, where)
        at = _skip_space(text, at)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise InputError(f"{where}: the JSON array is malformed or cut off after the row that begins here.")
        at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a row must be a JSON object, but this is {type(value).__name__}.")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading parquet needs PyArrow; install it with: pip install pyarrow.") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: the parquet file cannot be read after row {number} ({reason}).") from None
    if not number:
        raise _no_rows(path)
