"""The one error that means: the input is wrong, not the program; and how a value of the user's is quoted in it."""

from typing import Any

EVERYTHING = "pip install '.[eval]' in a clone of transformers-agci"  # what all commands need


class InputError(ValueError):
    """A mistake in what the user gave us.

    The message is one clear sentence: what was wrong, where (file, line, field), what is allowed, what to do.
    Commands print it without a traceback and exit with a non-zero code. It repeats what the user gave us, so whatever
    is no printable sign of one line is escaped.

    >>> from transformers_agci import InputError, probe_data
    >>> try:
    ...     probe_data(items=0)
    ... except InputError as error:
    ...     print(error)
    `items` must be a whole number of at least 1, but is 0.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class CannotServe(InputError):
    """A method refuses this model, or this prompt on it, at this strength: another one may still serve it."""


def printable(text: str) -> str:
    """The text with everything escaped that is no sign: names out of files may hold control characters and the like.

    >>> printable("one\\ttwo")
    'one\\\\ttwo'
    """
    return text if text.isprintable() else "".join(s if s.isprintable() else ascii(s)[1:-1] for s in text)


def short(value: Any, most: int = 80) -> str:
    """`value` as a message quotes it: its repr, cut after `most` characters, on one line and always printable.

    >>> short("a" * 9, most=4)
    "'aaa..."
    >>> short(["x\\ny", None])
    "['x\\\\ny', None]"
    """
    try:
        text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    except (ValueError, RecursionError):  # a number with thousands of digits, lists within lists
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[:most] + "..."


def clipped(text: str, most: int) -> str:
    """`text` where there is room for `most` characters only.

    >>> clipped("a locomotive", 6)
    'a loc…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def error_line(error: BaseException, most: int = 300) -> str:
    """What another library's error says, on one line of bearable length."""
    return clipped(" ".join(str(error).split()) or type(error).__name__, most)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, in the plural unless it is 1.

    >>> counted(1, "row"), counted(2, "row"), counted(0, "batch", "batches")
    ('1 row', '2 rows', '0 batches')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
