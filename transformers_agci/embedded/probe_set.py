"""The probe set that a newcomer needs no download for: composites of atlas images in the published format."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from transformers_agci.data.composites import compose, encode_jpeg, with_target
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.embedded.atlas import CELL, Atlas
from transformers_agci.embedded.drawing import CANVAS, Look, pose, tiles
from transformers_agci.embedded.items import Item, draw_item
from transformers_agci.errors import InputError

GRID = Grid(canvas=CANVAS, box=CELL, margin=0, gutter=0)
ROWS_FILE = "embedded_probe.json"
NEGATIVES_FILE = "embedded_probe_negatives.json"
IMAGE_FOLDER = "images"


class ProbeSet(NamedTuple):
    """Where the files of a probe set lie."""

    rows: Path
    negatives: Path | None
    images: Path


@dataclass(frozen=True)
class DrawnItem:
    """An item with its nine tiles, the target's first: each is drawn once and stands in all nine composites."""

    item: Item
    drawn: list[Image.Image]

    def composite(self, k: int) -> bytes:
        """The JPEG with the target in cell k."""
        return encode_jpeg(compose(with_target(self.drawn[0], self.drawn[1:], k), GRID))


def draw_items(atlas: Atlas, items: int, seed: int, look: Look) -> Iterator[DrawnItem]:
    """Items drawn at random; the first ones of a longer draw with the same seed are the same."""
    for number in range(items):
        rng = np.random.default_rng([seed, number])
        item = draw_item(atlas, rng, look)
        posed = np.stack([pose(atlas.image(image), rng, look) for image in item.shown])
        yield DrawnItem(item, [Image.fromarray(tile) for tile in tiles(posed, rng, look)])


def build_probe_set(
    folder: Path | str, items: int, seed: int = 0, negatives: bool = True, look: Look | None = None
) -> ProbeSet:
    """Write `items` items of nine rows each: <folder>/embedded_probe.json and <folder>/images/<key>_<k>.jpg.

    With `negatives` also embedded_probe_negatives.json: the same composites, asked with the name of an image
    that is not among them. Equal arguments give equal bytes. Raises InputError when there is nothing to draw.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> build_probe_set(folder, items=1).rows.read_text().splitlines()[4]  # doctest: +ELLIPSIS
    '{"id": 4, "image": "000000000_4.jpg", "caption": ..., "position": "center", "answer": "Yes"}'
    """
    if items < 1:
        raise InputError(f"A probe set needs at least one item, but items is {items}.")
    folder = Path(folder)
    found = ProbeSet(folder / ROWS_FILE, folder / NEGATIVES_FILE if negatives else None, folder / IMAGE_FOLDER)
    found.images.mkdir(parents=True, exist_ok=True)
    atlas = Atlas()
    yes_rows: list[dict[str, Any]] = []
    no_rows: list[dict[str, Any]] = []
    for number, drawn in enumerate(draw_items(atlas, items, seed, look or Look())):
        for k, position in enumerate(POSITIONS):
            name = f"{number:09d}_{k}.jpg"
            (found.images / name).write_bytes(drawn.composite(k))
            for rows, image, answer in (
                (yes_rows, drawn.item.target, "Yes"),
                (no_rows, drawn.item.absent, "No"),
            ):
                caption = atlas.names[image]
                identity = number * len(POSITIONS) + k
                rows.append({"id": identity, "image": name, "caption": caption, "position": position, "answer": answer})
    _write_rows(found.rows, yes_rows)
    if found.negatives is not None:
        _write_rows(found.negatives, no_rows)
    return found


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
