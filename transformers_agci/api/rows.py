"""Result rows as a DataFrame or an Arrow table, and statistics as HTML."""

import html
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.data.rows import read_rows
from transformers_agci.experiments.position.result_labels import method_and_lambda
from transformers_agci.report.table import Table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Rows = Sequence[Mapping[str, Any]]
PLAIN = (str, bool, int, float)


class Tabular(ABC):
    """What a run hands its result rows out by."""

    @property
    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The result rows."""

    def to_pandas(self) -> "pd.DataFrame":
        """A row per element of `rows`; what only some of them have is missing in the others."""
        return to_pandas(self.rows)

    def to_arrow(self) -> "pa.Table":
        """The same as an Arrow table."""
        return to_arrow(self.rows)


class Displayed:
    """What shows itself by its `text`, and in a notebook as HTML. It equals itself alone, since it holds arrays."""

    def __str__(self) -> str:
        text: str = self.text  # type: ignore[attr-defined]  # a property of each
        return text

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return tables_html([], str(self).splitlines())

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class DisplayedLines(Displayed):
    """What shows itself by the `lines` that its command prints."""

    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """What the command prints."""
        return "\n".join(self.lines)


def labelled(ours: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A result row with what it was made with in front; a column of its own that is called alike is input_<name>.

    >>> labelled({"lambda": 0.5}, {"lambda": 99, "image": "a.jpg"})
    {'lambda': 0.5, 'input_lambda': 99, 'image': 'a.jpg'}
    """
    return {**ours, **{f"input_{name}" if name in ours else name: value for name, value in row.items()}}


def rows_of_files(lambdas: Sequence[float], files: Sequence[Path]) -> list[dict[str, Any]]:
    """All rows of result files, each with the lambda of its file."""
    return [
        labelled({"lambda": lam}, row) for lam, path in zip(lambdas, files, strict=True) for _, row in read_rows(path)
    ]


def lambda_of_file(path: Path) -> float:
    """The lambda of a result file, by the manifest beside it; NaN where there is none, or it does not say."""
    made_with = method_and_lambda(path)
    return math.nan if made_with is None else made_with[1]


def to_pandas(rows: Rows) -> "pd.DataFrame":
    """A row per result row; what only some of them have is missing in the others."""
    import pandas as pd

    return pd.DataFrame.from_records([dict(row) for row in rows], columns=_columns(rows))


def to_arrow(rows: Rows) -> "pa.Table":
    """The same as an Arrow table. A column whose values are of several kinds, or nested, holds them as JSON."""
    import pyarrow as pa

    return pa.table({name: pa.array(_of_one_kind([row.get(name) for row in rows])) for name in _columns(rows)})


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _of_one_kind(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [float(value) if value is not None and float in kinds else value for value in values]
    if kinds == {str}:  # half a surrogate pair, which JSON can hold and Arrow cannot, is written out
        return [value and value.encode("utf-8", "backslashreplace").decode() for value in values]
    if len(kinds) <= 1 and kinds <= set(PLAIN):
        return values
    return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]


def tables_html(tables: Iterable[Table], words: Iterable[str] = ()) -> str:
    """Tables for a notebook, each with its title, and lines of words below. Everything in them is text."""
    return "".join(map(_table_html, tables)) + "".join(f"<p>{html.escape(line)}</p>" for line in words if line)


def _table_html(table: Table) -> str:
    caption = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in table.rows
    )
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
