"""Results of the position probe, scored: from result rows to tables [items, cells]."""

import glob
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformers_agci.data.grid import Shape
from transformers_agci.data.probe_rows import ANSWERS, LETTERS, cell_names, place_of
from transformers_agci.data.rows import LARGEST_NUMBER, read_rows, require, require_one_of, require_text
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.items import item_names
from transformers_agci.experiments.position.result_labels import builds_of, is_stock, label_of
from transformers_agci.storage import manifest
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.reading import is_file, open_file, path_text
from transformers_agci.storage.result_names import base_path

Floats = NDArray[np.floating]

MOST_NAMED = 5  # files that a message lists


def read_answer(prediction: str) -> str | None:
    """ "Yes", "No", or None where a reply is neither: the published scoring rule.

    A reply that starts with "Yes" or "No" is cut to that word; of any other the part before ", " is compared without
    regard to case. White space around the reply is ignored. So "Nothing like it" is a No and "yes." is unreadable.

    >>> [read_answer(reply) for reply in ("Yes.", "no, there is not", "yes.", "I see no cat")]
    ['Yes', 'No', None, None]
    """
    text = prediction.strip()
    for word in ANSWERS:
        if text.startswith(word):
            return word
    first = text.split(", ")[0].strip().lower()
    return next((word for word in ANSWERS if word.lower() == first), None)


def read_letter(prediction: str) -> str | None:
    """The letter that a reply to a choice begins with; None where it begins otherwise.

    >>> [read_letter(reply) for reply in ("B", "(c) a dog", "B. No", "Both", "")]
    ['B', 'C', 'B', None, None]
    """
    found = re.match(r"\s*\(?([A-Ia-i])(?![A-Za-z])", prediction)
    return found[1].upper() if found else None


@dataclass(frozen=True)
class Tables:
    """The rows of one answer (all Yes rows, or all No rows). Arrays are [items, cells] with NaN for missing rows.

    `correct`, `said_yes` and `unreadable` hold 0 and 1. An unreadable reply is not correct, but neither a Yes nor a No:
    `said_yes` is NaN there, so that on a No row it is no evidence of a correct rejection.
    `margin` is the logit of Yes minus that of No; NaN everywhere where a result carries none.
    """

    correct: Floats
    said_yes: Floats
    unreadable: Floats
    margin: Floats

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int((~np.isnan(self.correct)).sum())

    @property
    def against_margin(self) -> NDArray[np.bool_]:
        """[items, cells]: a No with a margin above zero, or a Yes with one below."""
        readable = self.unreadable == 0
        found: NDArray[np.bool_] = readable & np.where(self.said_yes == 1, self.margin < 0, self.margin > 0)
        return found

    def mapped(self, change: Callable[[Floats], Floats]) -> "Tables":
        """Every table changed in the same way."""
        return Tables(*(change(getattr(self, name)) for name in Tables.__annotations__))

    @property
    def has_margins(self) -> bool:
        """Whether any row carries a margin."""
        return bool(np.isfinite(self.margin).any())


def rows_called(answer: str, choice: bool) -> str:
    """What the rows of one answer are called: those of a choice between options have no Yes and No."""
    return "choices" if choice else f"{answer.capitalize()} rows"


class AnsweredRow(NamedTuple):
    """A result row as a reader sees it: its item (a place in `items`), its cell, what was asked and replied."""

    item: int
    cell: int
    answer: str  # the right one, Yes or No
    image: str
    caption: str
    prediction: str


@dataclass(frozen=True)
class ProbeResult:
    """One model's answers: `items` names the rows of both tables (the image's key); a table without rows is None.

    `captions` are the items' captions, those of their Yes rows where they have any; empty where nobody asked for them.
    `rows` are the rows in the file's order, where they were asked for. `choice`: its questions are choices between
    options, of which `yes` holds whether the letter is right, and `no` nothing.
    """

    label: str
    shape: Shape
    items: tuple[str, ...]
    yes: Tables | None
    no: Tables | None
    captions: tuple[str, ...] = ()
    rows: tuple[AnsweredRow, ...] = ()
    choice: bool = False
    builds: tuple[str, ...] = ()  # models and builds of a server, as far as the manifest names them
    no_captions: tuple[frozenset[str], ...] = ()  # of each item what its No rows ask about; empty as `captions`
    file: str = ""  # that it was read from, where it was
    stock: bool | None = None  # whether it is of the model as it is; None where no manifest tells

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of the cells, row-major."""
        return cell_names(self.shape)

    @property
    def named(self) -> str:
        """How an error names it: two results may have labels that do not tell which files they are."""
        return f"'{self.label}' ({self.file})" if self.file else f"'{self.label}'"

    def select(self, items: Sequence[str]) -> "ProbeResult":
        """The same result with these items in this order; an item that it lacks is a row of NaN."""
        places = {item: place for place, item in enumerate(self.items)}
        order = np.array([places.get(item, -1) for item in items], dtype=int)

        def pick(table: Floats) -> Floats:
            return np.where((order >= 0)[:, None], table[order], np.nan)

        negatives = tuple(self.no_captions[k] if k >= 0 else frozenset() for k in order) if self.no_captions else ()

        yes, no = (tables and tables.mapped(pick) for tables in (self.yes, self.no))
        captions = tuple(self.captions[place] if place >= 0 else "" for place in order) if self.captions else ()
        return replace(self, items=tuple(items), yes=yes, no=no, captions=captions, no_captions=negatives, rows=())


class _Scored(NamedTuple):
    image: str
    caption: str
    prediction: str
    shape: Shape
    cell: int
    answer: str
    said: str | None
    margin: float
    where: str
    choice: bool


def read_results(
    path: str | Path, negatives: str | Path | None = None, label: str | None = None, *, keep_rows: bool = False
) -> ProbeResult:
    """Read and score a result file, and the result file of its negatives where that is another one.

    Rows need `image`, `answer`, `prediction` and `position` (or `grid`, `row`, `col`); other fields are passed over,
    so result files of the published scripts are read too. InputError names file:line and field.
    """
    rows = [row for file in (path, negatives) if file is not None for row in _scored_rows(Path(file))]
    _check_one_kind(rows, path)
    names = item_names(rows)
    items = tuple(dict.fromkeys(names))
    place = {item: number for number, item in enumerate(items)}
    by_answer = {
        answer: _tables(
            [(place[n], row) for n, row in zip(names, rows, strict=True) if row.answer == answer],
            len(items),
            math.prod(rows[0].shape),
        )
        for answer in ANSWERS
    }
    captions = _captions(names, rows)
    kept = [
        AnsweredRow(place[name], row.cell, row.answer, row.image, row.caption, row.prediction)
        for name, row in zip(names if keep_rows else (), rows, strict=keep_rows)
    ]
    return ProbeResult(
        label or label_of(path),
        rows[0].shape,
        items,
        by_answer["Yes"],
        by_answer["No"],
        tuple(captions[i] for i in items),
        tuple(kept),
        rows[0].choice,
        tuple(dict.fromkeys(build for file in (path, negatives) if file is not None for build in builds_of(file))),
        _captions_of_no_rows(items, names, rows),
        str(path),
        is_stock(path),
    )


def _scored_rows(file: Path) -> "list[_Scored]":
    """The rows of a file; InputError says what else the file is, or where it may be, where that can be seen."""
    try:
        return [_score(row, where) for where, row in read_rows(file, nan=True)]
    except InputError as error:
        if kind := _other_kind(file):
            raise InputError(f"{path_text(file)}: {kind}.") from None
        hint = _hint(file)
        raise InputError(f"{str(error).removesuffix('.')}; {hint}.") if hint else error from None


def _other_kind(file: Path) -> str:
    """What a JSON file of ours holds that is not results; "" for every other file."""
    try:
        content = read_json_object(file)
    except InputError:
        return ""
    if "settings" in content and "prediction" not in content:
        return "this is a manifest, which says how results were made; name the result file beside it"
    if "results" in content and "prediction" not in content:
        return "this holds the numbers of an earlier evaluation; name the result file that agci probe wrote"
    return ""


def _hint(file: Path) -> str:
    """Where results are that were not found, or how a torn file is mended; "" where that cannot be seen."""
    if not is_file(file):
        beside = sorted(file.parent.glob(f"{glob.escape(base_path(file).name)}.lam*.jsonl")) if file.name else []
        named = " and ".join(path_text(each) for each in beside[:MOST_NAMED])
        return f"of the lambdas that were asked there {'is' if len(beside) == 1 else 'are'} {named}" if beside else ""
    if not manifest.path_of(file).exists() or not file.stat().st_size:
        return ""
    with open_file(file) as opened:
        opened.seek(-1, os.SEEK_END)
        torn = opened.read(1) != b"\n"
    return "the file is cut off in its last line: the command that wrote it mends it when run again" if torn else ""


def _check_one_kind(rows: Sequence[_Scored], path: str | Path) -> None:
    """InputError where rows have several grids, or some are choices between options."""
    shapes = {row.shape: row.where for row in rows}
    if len(shapes) > 1:
        found = ", ".join(f"{r}x{c} ({where})" for (r, c), where in shapes.items())
        raise InputError(f"{path}: one map needs one grid, but the rows have several: {found}; split the file.")
    asked = {row.choice: row.where for row in rows}
    if len(asked) > 1:
        raise InputError(
            f"{path}: some rows are choices between options ({asked[True]}) and some Yes/No questions "
            f"({asked[False]}); split the file."
        )


def _captions_of_no_rows(
    items: Sequence[str], names: Sequence[str], rows: Sequence[_Scored]
) -> tuple[frozenset[str], ...]:
    found: dict[str, set[str]] = {item: set() for item in items}
    for name, row in zip(names, rows, strict=True):
        if row.answer == "No" and row.caption:
            found[name].add(" ".join(row.caption.split()))
    return tuple(frozenset(found[item]) for item in items)


def _captions(names: Sequence[str], rows: Sequence[_Scored]) -> dict[str, str]:
    """By item the caption of its Yes row, without one that of its No row."""
    captions: dict[str, str] = {}
    for name, row in zip(names, rows, strict=True):
        if row.answer == "Yes":
            captions[name] = row.caption
        else:
            captions.setdefault(name, row.caption)
    return captions


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a result row is right by the published scoring rule: a row of the data file with its `prediction`.

    >>> is_right({"answer": "No", "prediction": "no, there is not"}), is_right({"answer": "Yes", "prediction": "yes."})
    (True, False)
    """
    answer, said = _answer(row, str(row["prediction"]), "the row")
    return said == answer


def baseline_note(results: Sequence[ProbeResult]) -> str:
    """Which result is taken as the baseline, where the first is not stock and another one is; otherwise empty."""
    first, stock = results[0], next((result for result in results[1:] if result.stock), None)
    if first.stock is not False or stock is None:
        return ""
    return f"{first.named} is first and taken as the baseline, but {stock.named} is stock, at lambda 0."


def _score(row: Mapping[str, Any], where: str) -> _Scored:
    prediction = require(row, "prediction", where)
    if not isinstance(prediction, str):
        raise InputError(f'{where}: "prediction" must be a text, but is {prediction!r}.')
    shape, cell = place_of(row, where)
    answer, said = _answer(row, prediction, where)
    return _Scored(
        image=require_text(row, "image", where),
        caption=str(row.get("caption", "")),
        prediction=prediction,
        shape=shape,
        cell=cell,
        answer=answer,
        said=said,
        margin=_margin(row, where) if row.get("options") is None else math.nan,
        where=where,
        choice=row.get("options") is not None,
    )


def _answer(row: Mapping[str, Any], prediction: str, where: str) -> tuple[str, str | None]:
    """(right answer, given answer) as Yes or No. A choice between options is a Yes where the letter is right."""
    if row.get("options") is None:
        return require_one_of(row, "answer", ANSWERS, where), read_answer(prediction)
    right = require_one_of(row, "answer", tuple(LETTERS), where)
    letter = read_letter(prediction)
    return "Yes", letter and ("Yes" if letter == right else "No")


def _margin(row: Mapping[str, Any], where: str) -> float:
    margin = row.get("margin")
    if margin is None:
        return math.nan
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise InputError(f'{where}: "margin" must be a number, but is {margin!r}.')
    if abs(margin) > LARGEST_NUMBER:
        raise InputError(f'{where}: "margin" must be finite, or null where there is none, but is {short(margin)}.')
    return float(margin)


def _tables(placed: Sequence[tuple[int, _Scored]], items: int, cells: int) -> Tables | None:
    if not placed:
        return None
    first: dict[tuple[int, int], str] = {}
    for item, row in placed:
        if (item, row.cell) in first:
            raise InputError(
                f'{row.where}: the answer "{row.answer}" for cell {row.cell} of this item ({row.image}) is there '
                f"already ({first[item, row.cell]}); a result holds every row once: remove one of them."
            )
        first[item, row.cell] = row.where
    at = np.array([item * cells + row.cell for item, row in placed])

    def table(values: Iterable[Any]) -> Floats:
        filled = np.full(items * cells, np.nan)
        filled[at] = np.fromiter(values, dtype=float, count=len(placed))
        return filled.reshape(items, cells)

    return Tables(
        correct=table(row.said == row.answer for _, row in placed),
        said_yes=table(math.nan if row.said is None else row.said == "Yes" for _, row in placed),
        unreadable=table(row.said is None for _, row in placed),
        margin=table(row.margin for _, row in placed),
    )
