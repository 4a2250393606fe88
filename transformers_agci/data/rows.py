"""One reader of rows for every format, and the checks of a row's fields."""

import codecs
import datetime
import decimal
import gzip
import math
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from transformers_agci.errors import InputError, short
from transformers_agci.storage.reading import (
    NotJSON,
    decoder,
    is_folder,
    kind_of,
    open_file,
    parse_json,
    path_text,
    whole_value,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
MAX_ROW = 1 << 26  # bytes of one row as JSON; a row of a gzip file could be of any size
CHUNK = 1 << 16  # bytes of an array that are read at a time
LARGEST_NUMBER = (
    2 - 2.0**-23
) * 2.0**127  # of float32, as large as of any dtype that models compute in: sums of them stay finite

Row = dict[str, Any]
OnError = Callable[[InputError], None]


class SourcedRow(NamedTuple):
    """A row and where it stands: "rows.json:12" (the line on which it begins), in parquet "rows.parquet:row 12"."""

    where: str
    row: Row


def read_rows(
    path: Path | str,
    on_error: OnError | None = None,
    *,
    any_name: bool = False,
    empty_text_as_row: bool = False,
    nan: bool = False,
) -> Iterator[SourcedRow]:
    """Yield the rows of a JSON Lines, JSON array (both also as .gz) or parquet file, as a stream.

    Raises InputError for a file that is missing, empty or of another kind, and for a malformed line; with `on_error`
    a malformed line is given to it and reading goes on. Blank lines are passed over.

    any_name            take a file whatever it is called; gzip and parquet are known by their first bytes
    empty_text_as_row   read "" as a row without fields (MMMU-Pro's scripts write it for a question they skip)
    nan                 take NaN and Infinity in JSON, which result files may hold; in parquet NaN is null
    """
    path = Path(path)
    if not any_name and not path.name.endswith(SUFFIXES):
        what = "this is a folder: name a file in it; " if is_folder(path) else ""
        raise InputError(f"{path_text(path)}: {what}rows are read from {', '.join(SUFFIXES)} only.")
    found = False
    with open_file(path) as file:
        magic = file.read(4)
        file.seek(0)
        if path.suffix == ".parquet" or magic == b"PAR1":
            rows: Iterator[SourcedRow | InputError] = _parquet(path, file)
        else:
            text = _Text(path, file, is_gzip=path.suffix == ".gz" or magic[:2] == b"\x1f\x8b")
            rows = _json_rows(text, empty_text_as_row, nan)
        for row in rows:
            found = True
            if not isinstance(row, InputError):
                yield row
            elif on_error is None:
                raise row
            else:
                on_error(row)
    if not found:
        raise InputError(f"{path_text(path)}: the file holds no rows.")


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
        raise InputError(f'{where}: "{name}" must be a text that is not empty, but is {short(value)}.')
    return value


def require_one_of(fields: Mapping[str, Any], name: str, allowed: tuple[str, ...], where: str) -> str:
    """The value of a field that must be one of a few words."""
    value = require(fields, name, where)
    if value not in allowed:
        raise InputError(f'{where}: "{name}" is {short(value)}, but must be one of: {", ".join(allowed)}.')
    return str(value)


def require_whole_number(
    fields: Mapping[str, Any], name: str, where: str, least: int | None = None, most: int | None = None
) -> int:
    """The value of a field that must be a whole number from `least` to `most`; true and false are none."""
    value = require(fields, name, where)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least) or (most is not None and value > most):
        allowed = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
        raise InputError(f'{where}: "{name}" must be a whole number{allowed}, but is {short(value)}.')
    return int(value)


def require_number(
    fields: Mapping[str, Any], name: str, where: str, low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER
) -> float:
    """The value of a field that must be a finite number from `low` to `high`."""
    value = require(fields, name, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f'{where}: "{name}" must be a number{_from(low, high)}, but is {short(value)}.')
    return float(value)


def require_object(fields: Mapping[str, Any], name: str, where: str) -> Row:
    """The value of a field that must be an object, which has fields of its own."""
    value = require(fields, name, where)
    if not isinstance(value, dict):
        raise InputError(f'{where}: "{name}" must be an object, but is {short(value)}.')
    return value


def require_objects(fields: Mapping[str, Any], name: str, where: str) -> list[Row]:
    """The value of a field that must be a list of objects, at least one."""
    value = require(fields, name, where)
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise InputError(f'{where}: "{name}" must be a list of objects, but is {short(value)}.')
    return value


def number_table(  # noqa: PLR0917 - what is read, where it stands, what it may be
    value: Any, what: str, where: str, shape: tuple[int, int] | None, low: float, high: float
) -> "NDArray[np.floating]":
    """A list of lists as an array [rows, cols] of finite numbers from `low` to `high`; of this shape where it is known.

    `what` is how a message calls it.
    """
    import numpy as np

    is_table = (
        isinstance(value, list)
        and all(isinstance(row, list) and len(row) == len(value[0]) > 0 for row in value)
        and all(
            isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high for row in value for v in row
        )
    )
    if not is_table or not value or shape not in (None, (len(value), len(value[0]))):
        size = f"{shape[0]} x {shape[1]}" if shape else "rows of equally many"
        raise InputError(f"{where}: {what} must be {size} numbers{_from(low, high)}, but is {short(value)}.")
    return np.array(value, dtype=float)


def _from(low: float, high: float) -> str:
    bounded = abs(low) < LARGEST_NUMBER, abs(high) < LARGEST_NUMBER
    return {
        (True, True): f" from {low:g} to {high:g}",
        (True, False): f" of at least {low:g}",
        (False, True): f" of at most {high:g}",
        (False, False): f" within {LARGEST_NUMBER:.2g} of 0",
    }[bounded]


class _Text:
    """The bytes of a JSON file, unpacked, with every way in which reading may fail as an InputError."""

    def __init__(self, path: Path, file: IO[bytes], is_gzip: bool) -> None:
        self.path, self.line = path, 0
        self._file = gzip.GzipFile(fileobj=file) if is_gzip else file

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number from 1, text) of every line that is not blank."""
        for line in iter(lambda: self._read(self._file.readline), b""):
            self.line += 1
            if len(line) > MAX_ROW:
                raise InputError(f"{self.path.name}:{self.line}: the line is longer than {MAX_ROW >> 20} MiB.")
            try:
                text = line.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{self.path.name}:{self.line}: this line is not UTF-8 text.") from None
            if text.strip():
                yield self.line, text

    def begins_array(self) -> bool:
        """Whether the first character that is not a space is "["; the file is then at its beginning again."""
        head = self._read(self._file.read, 4).removeprefix(codecs.BOM_UTF8)
        while head and not head.strip():
            head = self._read(self._file.read, 4096)
        self._read(self._file.seek, 0)
        return head.lstrip().startswith(b"[")

    def chunk(self) -> bytes:
        return self._read(self._file.read, CHUNK)

    def _read(self, read: Callable[[int], Any], size: int = MAX_ROW + 1) -> Any:
        try:
            return read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            after = f" after line {self.line}" if self.line else ""
            raise InputError(f"{self.path.name}: the gzip file is broken or truncated{after}.") from None
        except OSError as error:
            raise InputError(f"{path_text(self.path)}: the file cannot be read ({error.strerror}).") from None


def _json_rows(text: _Text, empty_text_as_row: bool, nan: bool) -> Iterator[SourcedRow | InputError]:
    values = _array(text, nan) if text.begins_array() else _json_lines(text, nan)
    for line, value in values:
        where = f"{text.path.name}:{line}"
        if isinstance(value, NotJSON):
            yield InputError(f"{where}: this line is not valid JSON ({value}).")
        elif isinstance(value, dict):
            yield SourcedRow(where, value)
        elif value == "" and empty_text_as_row:
            yield SourcedRow(where, {})
        else:
            yield InputError(f"{where}: a row must be a JSON object, but this is {kind_of(value)}.")


def _json_lines(text: _Text, nan: bool) -> Iterator[tuple[int, Any]]:
    for number, line in text.lines():
        try:
            value = parse_json(line, nan)
        except NotJSON as error:
            value = error
        yield number, value


def _array(text: _Text, nan: bool) -> Iterator[tuple[int, Any]]:
    """(line, value) of every element; no more than one row beside a chunk is in memory.

    An element that is not whole yet is parsed again with more text behind it, and the text that is read doubles each
    time, so that the work stays in proportion to the file. (ijson needs memory that grows with the square of the
    depth, and turns half a surrogate pair into a question mark.)
    """
    window = _Window(text)
    window.expect("[")
    if window.peek() == "]":
        window.expect("]")
    else:
        while True:
            window.peek()
            line = window.line
            yield line, window.value(nan)
            if window.peek() == "]":
                window.expect("]")
                break
            window.expect(",")
    if window.peek():
        raise window.malformed("something stands behind its end")


class _Window:
    """The part of an array's text around the place that has been reached."""

    def __init__(self, text: _Text) -> None:
        self.line = 1  # on which `at` stands
        self._source, self._text, self._at = text, "", 0
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False

    def peek(self) -> str:
        """The next character that is not a space, which then comes next; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._advance(self._at + 1)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        """Go past a character; InputError when another one comes."""
        found = self.peek()
        if found != character:
            raise self.malformed(f"{short(found)} where {character!r} is expected" if found else "it ends too early")
        self._advance(self._at + 1)

    def value(self, nan: bool) -> Any:
        """Go past a value."""
        while True:
            try:
                value, end = whole_value(decoder(self._text, nan).raw_decode, self._text, self._at)
            except NotJSON as error:
                if not error.can_go_on or not self._more():
                    raise self.malformed(error.what) from None
                continue
            if end < len(self._text) or not self._more():  # a number may go on in what was not read yet
                self._advance(end)
                return value

    def malformed(self, reason: str) -> InputError:
        return InputError(
            f"{self._source.path.name}:{self.line}: the JSON array is malformed or cut off here ({reason})."
        )

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Read on, at least as much as is kept; False at the end of the file."""
        if self._ended:
            return False
        kept = self._text[self._at :]
        if len(kept) > MAX_ROW:
            raise InputError(f"{self._source.path.name}:{self.line}: the row is longer than {MAX_ROW >> 20} MiB.")
        parts = [kept]
        while sum(map(len, parts[1:])) <= len(kept) and not self._ended:
            data = self._source.chunk()
            self._ended = not data
            try:
                parts.append(self._decode.decode(data, final=self._ended))
            except UnicodeDecodeError:
                raise self.malformed("what follows is not UTF-8 text") from None
        self._text, self._at = "".join(parts), 0
        return True


def _parquet(path: Path, file: IO[bytes]) -> Iterator[SourcedRow | InputError]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path_text(path)}: reading parquet needs PyArrow; install it with: pip install pyarrow."
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{path_text(path)}: the column {short(twice)} occurs twice.")
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path.name}:row {number}"
                    yield SourcedRow(where, {name: _plain(v, name, where) for name, v in row.items()})
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path_text(path)}: the parquet file cannot be read after row {number} ({reason}).") from None


def _plain(value: Any, name: str, where: str) -> Any:
    """A parquet value as JSON has it; NaN stands for null there, and bytes stay: they are an image's."""
    if isinstance(value, dict):
        return {key: _plain(v, f"{name}.{key}", where) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{name}[{number}]", where) for number, v in enumerate(value)]
    if value is None or isinstance(value, str | int | bytes):
        return value
    known = next((kind for kind in _PARQUET_VALUES if isinstance(value, kind)), None)
    if known is None:
        raise InputError(f"{where}: the column {name!r} holds a {type(value).__name__}, which no row of ours has.")
    return _PARQUET_VALUES[known](value)


_PARQUET_VALUES: dict[type, Callable[[Any], Any]] = {
    float: lambda number: number if math.isfinite(number) else None,
    decimal.Decimal: lambda number: float(number) if number.is_finite() else None,
    datetime.date: lambda date: date.isoformat(),  # datetime.datetime too
    datetime.time: lambda time: time.isoformat(),
    datetime.timedelta: lambda span: span.total_seconds(),
    uuid.UUID: str,
}
