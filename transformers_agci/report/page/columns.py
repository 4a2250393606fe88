"""Columns of numbers and texts as a page's script reads them: base64 of little-endian arrays, texts by their number."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_LETTERS = 300  # of a text that is shown; the files have the rest


class Texts:
    """Texts by number: each is kept once, cut to what is shown."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The text's number."""
        if len(text) > MOST_LETTERS:
            text = f"{text[:MOST_LETTERS]} … ({len(text)} letters)"
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def all(self) -> list[str]:
        """The texts in the order of their numbers."""
        return list(self._numbers)


def column(values: NDArray[Any] | Sequence[int]) -> dict[str, str]:
    """Whole numbers from 0, in as few bytes as the largest needs."""
    array = np.asarray(values)
    most = int(array.max(initial=0))
    kind, dtype = ("u8", "<u1") if most < 2**8 else ("u16", "<u2") if most < 2**16 else ("u32", "<u4")
    return {"type": kind, "data": _base64(array.astype(dtype))}


def margins(values: NDArray[np.floating]) -> dict[str, Any] | None:
    """Margins as 32-bit floats, NaN where one is missing; None where there are none."""
    return {"type": "f32", "data": _base64(values.astype("<f4"))} if np.isfinite(values).any() else None


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
