"""Tables as text and as Markdown, and the one way in which numbers and intervals are written.

An interval of shares (0..1) is written in percent, a difference in percentage points; bounds that could not be had
(a single item, values that are all equal) are said to be missing and never written as an interval of width zero.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers_agci.statistics import Interval
    from transformers_agci.statistics.evenness import Change

    Estimate = Interval | Change  # `estimate` with its bounds `low` and `high`, NaN where there are none

ABSENT = "-"
LETTERS = 120  # of a line on a terminal
GAP = "  "  # between columns
MOST_DIGITS = 12  # behind the point
NOTHING = 1e-9  # what is smaller is the rounding of a zero


class Style(NamedTuple):
    """How an estimate is written: factor, decimals, whether with a sign."""

    factor: float = 1
    digits: int = 2
    signed: bool = False

    def value(self, number: float) -> str:
        """One number; "-" where it is not finite. What is rounded to zero has no sign."""
        if not math.isfinite(number):
            return ABSENT
        text = f"{self.factor * number:{'+' if self.signed else ''}.{self.digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text

    def write(self, value: "Estimate | None") -> str:
        """ "91.2 [89.0, 93.1]"; the estimate with "[no interval]" where it has no bounds; "-" without an estimate.

        Bounds that would look alike get the digits that tell them apart.
        """
        if value is None or not math.isfinite(value.estimate):
            return ABSENT
        if not (math.isfinite(value.low) and math.isfinite(value.high)):
            return f"{self.value(value.estimate)} [no interval]"
        style = self._telling_apart(value)
        return f"{style.value(value.estimate)} {style.bounds(value)}"

    def with_unit(self, value: "Estimate | None", unit: str) -> str:
        """ "91.2 [89.0, 93.1] %"; without bounds "91.2 % [no interval]"."""
        text = self.write(value)
        number, _, missing = text.partition(" [no")
        return f"{number} {unit} [no{missing}" if missing else f"{text} {unit}"

    def bounds(self, value: "Estimate") -> str:
        """ "[89.0, 93.1]"; "-" without bounds.

        A bound that is not zero does not look like it: "[-0.89, -0.001]" has the digit that shows where zero lies.
        """
        if not (math.isfinite(value.low) and math.isfinite(value.high)):
            return ABSENT
        style = self._telling_apart(value)
        return f"[{style._bound(value.low)}, {style._bound(value.high)}]"

    def _bound(self, number: float) -> str:
        style = self
        while abs(self.factor * number) > NOTHING and float(style.value(number)) == 0:
            style = style._replace(digits=style.digits + 1)
        return style.value(number)

    def _telling_apart(self, value: "Estimate") -> "Style":
        """This style with as many digits as tell the bounds apart."""
        style = self
        while style.digits < MOST_DIGITS and style.value(value.low) == style.value(value.high):
            style = style._replace(digits=style.digits + 1)
        return style


PERCENT = Style(100, 1)
POINTS = Style(100, 1, signed=True)
NUMBER = Style()
CHANGE = Style(signed=True)


def p_value(p: float) -> str:
    """ "0.032", "<0.001", "-" where there is none."""
    if not math.isfinite(p):
        return ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def p_text(p: float) -> str:
    """ "p = 0.032", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[int] = ()) -> str:
    """Columns as wide as their widest text: the first to the left, the others to the right.

    Columns that find no room on a line of LETTERS stand in a further table below, beside the first one again. `groups`
    are how many of them each stay together; without it every column stands by itself.

    >>> print(format_table(["position", "n"], [["top_left", "100"], ["center", "98"]]))
    position    n
    top_left  100
    center     98
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    parts = [[0]]
    ends = list(itertools.accumulate(groups or [1] * (len(header) - 1), initial=1))
    if ends[-1] != len(header):
        raise ValueError(f"The groups are of {ends[-1] - 1} columns, but {len(header) - 1} stand beside the first one.")
    for start, end in itertools.pairwise(ends):
        wider = [*parts[-1], *range(start, end)]
        if len(parts[-1]) > 1 and sum(widths[k] + len(GAP) for k in wider) - len(GAP) > LETTERS:
            parts.append([0, *range(start, end)])
        else:
            parts[-1] = wider
    return "\n\n".join(_aligned([header, *rows], part, widths) for part in parts)


def _aligned(lines: Sequence[Sequence[str]], columns: Sequence[int], widths: Sequence[int]) -> str:
    return "\n".join(
        GAP.join(line[k].rjust(widths[k]) if k else line[k].ljust(widths[k]) for k in columns).rstrip()
        for line in lines
    )


class Table(NamedTuple):
    """A table before it is written: as text, as Markdown, in a page. `title` says what it holds, "" for nothing.

    `groups`: columns that stay together where the text is cut (`format_table`).
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[int] = ()

    @property
    def text(self) -> str:
        """Title and table for the terminal."""
        table = format_table(self.header, self.rows, self.groups)
        return f"{self.title}\n\n{table}" if self.title else table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown.

    >>> print(markdown_table(["position", "n"], [["center", "98"]]))
    | position | n |
    | --- | --- |
    | center | 98 |
    """
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))
