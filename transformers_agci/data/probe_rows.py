"""The row of a probe or similarity set: what is asked about which images, and where the right answer stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers_agci.data.grid import POSITIONS, Shape
from transformers_agci.data.rows import OnError, Row, read_rows, require, require_one_of, require_text
from transformers_agci.data.rows import require_whole_number as whole_number
from transformers_agci.errors import InputError, short

ANSWERS = ("Yes", "No")
LETTERS = "ABCDEFGHI"
MOST_CELLS = 20  # rows or columns of a grid
# The position probe's question (paper, section on the probe dataset).
PROMPT = (
    "Determine if there is a sub-image in the given image that matches the text following.\n"
    "Text: {caption}\n"
    "The answer should only contain 'Yes' or 'No', without reasoning process.\n"
)
# Ours, for several images instead of a grid, and for a choice between texts.
IMAGES_PROMPT = (
    "Determine if one of the given images matches the text following.\n"
    "Text: {caption}\n"
    "The answer should only contain 'Yes' or 'No', without reasoning process.\n"
)
OPTIONS_PROMPT = (
    "Which of the texts following matches the given image?\n"
    "{options}\n"
    "The answer should only contain the letter of the text, without reasoning process.\n"
)


@dataclass(frozen=True)
class ProbeRow:
    """One question of the position probe, or one image of the similarity set.

    A file holds one JSON object per line (JSON Lines, whatever the file is called; an array or parquet is read
    too), and the rows of an item, one per cell, stand together:

        {"id": 4, "image": "019920000_4.jpg", "caption": "a dog on a beach", "position": "center", "answer": "Yes"}

    id        int    names the composite; unique in its file
    image     str    path below the image folder; our builder and the published sets write <key>_<k>.jpg, k = 0..8
    caption   str    the text that is asked about, not empty
    position  str    where the target stands, one of POSITIONS; on other grids than 3x3 there is none, but
    grid      str    "4x4" (rows x columns), with `row` and `col`, from 0
    answer    str    "Yes": the caption's image is in the composite at that place; "No": it is not in it
    images    list   instead of a composite several images, shown in this order (the grid is 1xN); `image` then only
                     names the row
    options   list   texts to choose from, A, B, C, ...; `answer` is the letter of the right one, which stands at `col`

    `fields` is the row as it was read, further fields included: results repeat it. `where` is "file.json:12".
    """

    id: int
    image: str
    caption: str
    shape: Shape
    cell: int  # row-major from 0
    answer: str
    images: tuple[str, ...]
    options: tuple[str, ...]
    fields: Row = field(repr=False, compare=False)
    where: str = field(default="", compare=False)

    @property
    def position(self) -> str:
        """The name of the place: "top_left" on a 3x3 grid, "row 1, col 1" on others."""
        return cell_names(self.shape)[self.cell]

    @property
    def is_published_form(self) -> bool:
        """Whether it is a question about one composite of 3x3 sub-images."""
        return self.shape == (3, 3) and self.images == (self.image,) and not self.options

    def check_published_form(self) -> None:
        """InputError unless it is a question about one composite of 3x3 sub-images."""
        if not self.is_published_form:
            raise InputError(
                f"{self.where}: this experiment takes composites of 3x3 sub-images only; other grids, several images "
                "and choices between texts are for the position probe."
            )

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> "ProbeRow":
        """A row from its JSON object; InputError names `where`, the field, and what is allowed."""
        number, image = whole_number(fields, "id", where), require_text(fields, "image", where)
        caption = require_text(fields, "caption", where)
        shape, cell = place_of(fields, where)
        images = _texts(fields, "images", where) or (image,)
        options = _texts(fields, "options", where)
        if options and (shape != (1, len(options)) or not 2 <= len(options) <= len(LETTERS)):
            raise InputError(
                f'{where}: "options" must be 2 to {len(LETTERS)} texts and "grid" 1 x their number, but there are '
                f"{len(options)} and the grid is {shape[0]}x{shape[1]}."
            )
        if len(images) > 1 and shape != (1, len(images)):
            raise InputError(
                f'{where}: {len(images)} "images" need the grid 1x{len(images)}, not {shape[0]}x{shape[1]}.'
            )
        allowed = (LETTERS[cell],) if options else ANSWERS
        answer = require_one_of(fields, "answer", allowed, where)
        return cls(number, image, caption, shape, cell, answer, images, options, dict(fields), where)


def cell_names(shape: Shape) -> tuple[str, ...]:
    """POSITIONS for 3x3, otherwise "row 1, col 1" and so on."""
    if shape == (3, 3):
        return POSITIONS
    return tuple(f"row {row + 1}, col {col + 1}" for row in range(shape[0]) for col in range(shape[1]))


def place_fields(shape: Shape, cell: int) -> Row:
    """The fields that say where the target stands: `position` on a 3x3 grid, `grid`, `row` and `col` on others."""
    if shape == (3, 3):
        return {"position": POSITIONS[cell]}
    row, col = divmod(cell, shape[1])
    return {"grid": f"{shape[0]}x{shape[1]}", "row": row, "col": col}


def place_of(fields: Mapping[str, Any], where: str) -> tuple[Shape, int]:
    """The grid and the cell, row-major from 0, that a row's fields name; InputError names the field."""
    if "grid" not in fields:
        return (3, 3), POSITIONS.index(require_one_of(fields, "position", POSITIONS, where))
    shape = _shape(fields["grid"], where)
    place = []
    for name, size in zip(("row", "col"), shape, strict=True):
        value = require(fields, name, where)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise InputError(f'{where}: "{name}" must be a whole number from 0 to {size - 1}, but is {short(value)}.')
        place.append(value)
    cell = place[0] * shape[1] + place[1]
    named = fields.get("position")
    if shape == (3, 3) and named is not None and named != POSITIONS[cell]:
        raise InputError(f'{where}: "position" is {short(named)}, but row and col name {POSITIONS[cell]}.')
    return shape, cell


def _shape(grid: Any, where: str) -> Shape:
    parts = grid.lower().split("x") if isinstance(grid, str) and len(grid) < 9 else grid
    try:
        rows, cols = (int(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        rows = cols = 0
    if not 1 <= rows <= MOST_CELLS or not 1 <= cols <= MOST_CELLS:
        raise InputError(
            f'{where}: "grid" must be like "4x4" (rows x cols, each 1 to {MOST_CELLS}) or [4, 4], but is {short(grid)}.'
        )
    return rows, cols


def _texts(fields: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise InputError(f'{where}: "{name}" must be a list of texts that are not empty, but is {short(value)}.')
    return tuple(value)


def read_probe_rows(path: Path | str, on_error: OnError | None = None) -> list[ProbeRow]:
    """All rows of a probe or similarity file, checked.

    The first bad row raises InputError with file:line and field; with `on_error` bad rows are given to it and omitted.
    """
    rows = []
    for where, fields in read_rows(path, on_error):
        try:
            rows.append(ProbeRow.parse(fields, where))
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)
    return rows
