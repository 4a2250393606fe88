"""Reading files that others wrote: what is opened, what counts as JSON, and one sentence for everything else.

Every file of the outside world goes through `open_file`, every JSON text through `parse_json`. JSON is read as the
standard has it: UTF-8, no NaN, every key of an object once; and within bounds that no data file of the field comes
near, so that a hostile one is refused instead of filling the memory or the stack.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import IO, Any, cast

from transformers_agci.errors import InputError, short

MAX_DEPTH = 100  # lists and objects within each other
MAX_INTEGER = 2**64  # ids of hashed images are unsigned numbers of 64 bits
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes that file systems take
MAX_PYTHON_INTEGER = 10**40  # transformers writes 10**30 for a tokenizer without a maximal length

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} lists and objects"
_LONGEST_WORD = len("-Infinity") + 1
_NUMBER_TO_CHECK = re.compile(r"[0-9](?:[0-9]{18}|[eE]\+?[0-9]{3})")  # begins with one class: it is sought in every row


class NotJSON(ValueError):
    """Why a text is refused: one clause without full stop.

    `can_go_on`: the text may be the beginning of a value; `what` is the clause without the place in the text.
    """

    def __init__(self, clause: str, what: str | None = None, can_go_on: bool = False) -> None:
        super().__init__(clause)
        self.what, self.can_go_on = what or clause, can_go_on


def open_file(path: Path | str) -> IO[bytes]:
    """A regular file, opened for reading in binary.

    Raises InputError in one sentence for everything else: nothing there, a folder, a FIFO or device (which is not
    waited for), a circle of links, a name that no file can have, no permission.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            return cast(IO[bytes], os.fdopen(handle, "rb"))
        os.close(handle)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path_text(path)}: there is no such file.") from None
    except OSError as error:
        raise InputError(f"{path_text(path)}: the file cannot be read ({error.strerror}).") from None
    except ValueError:  # a NUL or half a surrogate pair
        raise InputError(f"{path_text(path)}: no file can have this name.") from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
    raise InputError(f"{path_text(path)}: this is {kind}, not a file.")


def is_file(path: Path | str) -> bool:
    """Whether there is a regular file; no for a name that no file can have, where Path.is_file raises."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_folder(path: Path | str) -> bool:
    """Whether there is a folder; no for a name that none can have."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def can_be_a_name(path: str) -> bool:
    """Whether a file or folder can be called so, by its length and letters."""
    try:
        parts = os.fsencode(path).split(os.fsencode(os.sep))
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return bool(path.strip()) and "\0" not in path and len(path) < LONGEST_PATH and max(map(len, parts)) <= LONGEST_NAME


def with_a_name(path: Path) -> Path:
    """A file or folder to make, beside which others can lie: `.` and `..` are the folders that they stand for.

    InputError for the root.
    """
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))  # noqa: PTH100 - a circle of links is for others to name
    if not path.name:
        raise InputError(f"{path} is not a name that can be given to a file or folder; give one within it.")
    return path


def read_bytes(path: Path | str) -> bytes:
    """The content of a regular file; InputError where there is none."""
    with open_file(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"{path_text(path)}: the file cannot be read ({error.strerror}).") from None


def read_text(path: Path | str) -> str:
    """The content of a UTF-8 file, without a byte order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path_text(path)}: the file is not UTF-8 text (byte {error.start}).") from None


def read_json(path: Path | str, nan: bool = False) -> Any:
    """The content of a JSON file."""
    try:
        return parse_json(read_text(path), nan)
    except NotJSON as error:
        raise InputError(f"{path_text(path)}: the file is not valid JSON ({error}).") from None


def parse_json(text: str, nan: bool = False) -> Any:
    """The value of a JSON text; `nan` lets NaN, Infinity and numbers below 10**40 pass, which Python's writer makes.

    Raises:
        NotJSON: malformed, nested deeper than `MAX_DEPTH`, a key twice in one object, a number beyond 64 bits.
    """
    return whole_value(decoder(text, nan).decode, text, depth_of=text)


def whole_value(decode: Any, *arguments: Any, depth_of: str = "") -> Any:
    """`decode(*arguments)`, its complaints as NotJSON, its value checked for depth.

    A text `depth_of` that has fewer brackets than `MAX_DEPTH` cannot be too deep: its value is not walked through.
    """
    try:
        value = decode(*arguments)
    except NotJSON:
        raise
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc) - _LONGEST_WORD or error.msg.startswith("Unterminated string")
        raise NotJSON(str(error), error.msg, at_end) from None
    except (ValueError, RecursionError) as error:
        raise NotJSON(_TOO_DEEP if isinstance(error, RecursionError) else str(error)) from None
    if depth_of and depth_of.count("{") + depth_of.count("[") <= MAX_DEPTH:
        return value
    if _too_deep(value[0] if isinstance(value, tuple) else value, MAX_DEPTH):  # raw_decode gives (value, end)
        raise NotJSON(_TOO_DEEP)
    return value


def decoder(text: str, nan: bool = False) -> json.JSONDecoder:
    """The decoder for a text. Numbers are looked at one by one only where a long one may be among them."""
    strict = _NUMBER_TO_CHECK.search(text) is not None
    return _DECODERS[strict, nan]


def kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def path_text(path: Path | str) -> str:
    """A path as a message shows it: as it is where it is printable and of bearable length."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 500 else short(text)


def _too_deep(value: Any, left: int) -> bool:
    if isinstance(value, dict):
        return left == 0 or any(_too_deep(v, left - 1) for v in value.values() if isinstance(v, dict | list))
    if isinstance(value, list):
        return left == 0 or any(_too_deep(v, left - 1) for v in value if isinstance(v, dict | list))
    return False


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise NotJSON(f"the key {short(next(key for key in keys if keys.count(key) > 1))} occurs twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise NotJSON(f"{name} is not a JSON value; write null")


def _bounded_int(digits: str) -> int:
    number = int(digits) if len(digits) <= 21 else MAX_INTEGER
    if not -MAX_INTEGER < number < MAX_INTEGER:
        raise NotJSON(f"the number {short(digits, 24)} has more than 64 bits")
    return number


def _bounded_python_int(digits: str) -> int:
    number = int(digits) if len(digits) <= 42 else MAX_PYTHON_INTEGER
    if not -MAX_PYTHON_INTEGER < number < MAX_PYTHON_INTEGER:
        raise NotJSON(f"the number {short(digits, 24)} is too large")
    return number


def _bounded_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotJSON(f"the number {short(digits, 24)} is too large")
    return number


_DECODERS = {
    (strict, nan): json.JSONDecoder(
        object_pairs_hook=_each_key_once,
        parse_constant=None if nan else _no_constant,
        parse_int=None if not strict else _bounded_python_int if nan else _bounded_int,
        parse_float=_bounded_float if strict else None,
    )
    for strict in (False, True)
    for nan in (False, True)
}
