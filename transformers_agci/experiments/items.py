"""Which rows belong together, and where their target lies: an item is one target in all cells, with one caption."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Protocol

from transformers_agci.data.grid import Box, Grid

PUBLISHED = Grid()


class Placed(Protocol):
    """A row of the probe, or of a result: what tells items apart."""

    @property
    def image(self) -> str:
        """File name of the composite."""

    @property
    def caption(self) -> str:
        """The text that is asked about."""

    @property
    def answer(self) -> str:
        """Yes or No."""

    @property
    def cell(self) -> int:
        """Where the target stands, row-major from 0."""


def item_names(rows: Sequence[Placed]) -> list[str]:
    """The item of every row. Yes rows and No rows about the same composites are the same item.

    It is the key of <key>_<k>.jpg where every file is named so, k being the cell. Otherwise it is the first image of
    a run: consecutive rows of one caption and answer without a cell twice.
    """
    keys = [_key(row) for row in rows]
    if all(key is not None for key in keys):
        return [str(key) for key in keys]
    names: list[str] = []
    cells: set[int] = set()
    for number, row in enumerate(rows):
        before = rows[number - 1] if number else None
        goes_on = before and (before.caption, before.answer) == (row.caption, row.answer) and row.cell not in cells
        cells = cells | {row.cell} if goes_on else {row.cell}
        names.append(names[-1] if goes_on else row.image)
    return names


def _key(row: Placed) -> str | None:
    """The image's path up to _<cell>, or None where it is not named so. No pathlib: a file has 90,000 rows."""
    image = row.image
    if "//" in image or "./" in image:
        image = str(PurePosixPath(image))
    folder, slash, name = image.rpartition("/")
    key, mark, number = (name.rpartition(".")[0] or name).rpartition("_")
    return folder + slash + key if mark and key and number == str(row.cell) else None


def target_box(cell: int, width: int, height: int) -> Box:
    """The box of cell 0..8 in pixels: the published geometry at 840x840, else a ninth of the image.

    >>> target_box(4, 252, 252)
    Box(left=84.0, top=84.0, right=168.0, bottom=168.0)
    """
    if (width, height) == (PUBLISHED.canvas, PUBLISHED.canvas):
        return PUBLISHED.boxes()[cell]
    row, col = divmod(cell, 3)
    return Box(col * width / 3, row * height / 3, (col + 1) * width / 3, (row + 1) * height / 3)
