"""Append-only files of JSON lines: what was written whole, what is torn, what is damaged.

A kill leaves a torn last line, which is cut off and done again. Any other line that is not JSON was not made by a
kill: it is named, and nothing is cut, because whole lines behind it would be lost.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.storage.json_file import json_bytes
from transformers_agci.storage.reading import open_file

_DAMAGED = object()


class Line(NamedTuple):
    """One whole line: its number from 1, where it lies in bytes, and what it holds."""

    number: int
    start: int
    end: int
    content: Any


class Journal:
    """Append-only JSON Lines. Opening it again cuts off a torn last line; what is left was written whole.

    Raises InputError where a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = list(whole_lines(path))
        self.records: list[Any] = [line.content for line in lines]
        self._ends = [0, *(line.end for line in lines)]
        self._file = path.open("ab")
        self._file.truncate(self._ends[-1])

    def keep(self, count: int) -> None:
        """Forget the records after the first `count` (as opened)."""
        del self.records[count:], self._ends[count + 1 :]
        self._file.truncate(self._ends[-1])

    def append(self, record: Any) -> None:
        """Write one record through to the operating system. It is not added to `records`."""
        self._file.write(json_bytes(record, ascii_only=False))
        self._file.flush()

    def close(self) -> None:
        """Nothing more is appended."""
        self._file.close()


def dump_row(row: Mapping[str, Any]) -> bytes:
    """One result line. ASCII, so that any caption (even half a surrogate pair) can be written and read back."""
    return json.dumps(row).encode("ascii") + b"\n"


def whole_lines(path: Path, kind: type = object) -> Iterator[Line]:
    """The lines that were written whole; a torn end is omitted, and a missing file has none.

    `kind` is what each line must hold. Raises InputError for a damaged line with whole ones behind it.
    """
    if not path.exists():
        return
    offset, damaged = 0, 0
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn, or another process is writing it just now
            content = parsed_line(line)
            if content is _DAMAGED or not isinstance(content, kind):
                damaged = damaged or number
            elif damaged:
                raise InputError(
                    f"{path}:{damaged} is damaged, and whole lines follow it: restore the line, or delete it and "
                    "everything behind it, which is then done again."
                )
            else:
                yield Line(number, offset, offset + len(line), content)
            offset += len(line)


def parsed_line(line: bytes) -> Any:
    """What a line holds; an object of no JSON type where it is damaged."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _DAMAGED


def append_through(file: IO[bytes], data: bytes) -> None:
    """Write all of it through to the disk; where that fails, nothing of it stays."""
    before = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), before)
        raise


def cut_off(path: Path, size: int) -> None:
    """Leave the first `size` bytes of a file, if it has more."""
    if path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
