"""The one error that means: the input is wrong, not the program; and how a value of the user's is quoted in it."""

from typing import Any


class InputError(ValueError):
    """A mistake in what the user gave us.

    The message is one clear sentence: what was wrong, where (file, line, field), what is allowed, what to do.
    Commands print it without a traceback and exit with a non-zero code.
    """


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
