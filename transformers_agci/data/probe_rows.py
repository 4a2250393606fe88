"""The row of a position probe or similarity set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.rows import OnError, Row, read_rows, require_one_of, require_text, require_whole_number
from transformers_agci.errors import InputError

ANSWERS = ("Yes", "No")
# The position probe's question (paper, section on the probe dataset).
PROMPT = (
    "Determine if there is a sub-image in the given image that matches the text following.\n"
    "Text: {caption}\n"
    "The answer should only contain 'Yes' or 'No', without reasoning process.\n"
)


@dataclass(frozen=True)
class ProbeRow:
    """One question of the position probe, or one image of the similarity set.

    A file holds one JSON object per line (JSON Lines, whatever the file is called; an array or parquet is read
    too), and the nine rows of an item, one per position, stand together:

        {"id": 4, "image": "019920000_4.jpg", "caption": "a dog on a beach", "position": "center", "answer": "Yes"}

    id        int    names the composite; unique in its file
    image     str    path below the image folder; our builder and the published sets write <key>_<k>.jpg, k = 0..8
    caption   str    the text that is asked about, not empty
    position  str    where the target stands, one of POSITIONS
    answer    str    "Yes": the caption's image is in the composite at `position`; "No": it is not in it

    `fields` is the row as it was read, further fields included: results repeat it. `where` is "file.json:12".
    """

    id: int
    image: str
    caption: str
    position: str
    answer: str
    fields: Row = field(repr=False, compare=False)
    where: str = field(default="", compare=False)

    @property
    def cell(self) -> int:
        """The row-major number of the position, 0 to 8."""
        return POSITIONS.index(self.position)

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> "ProbeRow":
        """A row from its JSON object; InputError names `where`, the field, and what is allowed."""
        return cls(
            id=require_whole_number(fields, "id", where),
            image=require_text(fields, "image", where),
            caption=require_text(fields, "caption", where),
            position=require_one_of(fields, "position", POSITIONS, where),
            answer=require_one_of(fields, "answer", ANSWERS, where),
            fields=dict(fields),
            where=where,
        )


def read_probe_rows(path: Path | str, on_error: OnError | None = None) -> list[ProbeRow]:
    """All rows of a probe or similarity file, checked.

    The first bad row raises InputError with file:line and field; with `on_error` bad rows are given to it and left out.
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
