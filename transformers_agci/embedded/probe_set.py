"""Sets that a newcomer needs no download for, in the published format: composites of atlas images.

The probe set has nine images per composite, the similarity set one image alone on a white canvas, in nine places.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from transformers_agci.data.composites import alone, compose, encode_jpeg, with_target
from transformers_agci.data.draws import StreamName, random_stream
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.embedded.atlas import CANVAS, CELL, Atlas, Item, RenderConfig, draw_item, pose, tiles
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import cannot_write, write_atomic

GRID = Grid(canvas=CANVAS, box=CELL, margin=0, gutter=0)
ROWS_FILE = "embedded_probe.json"
NEGATIVES_FILE = "embedded_probe_negatives.json"
SIMILARITY_FILE = "embedded_similarity.json"
IMAGE_FOLDER = "images"
PROBE_STREAM = ("embedded", "probe set")  # then the seed: the random stream of a probe set


class ProbeSet(NamedTuple):
    """Where the files of a probe set lie."""

    rows: Path
    negatives: Path | None
    images: Path


@dataclass(frozen=True)
class RenderedItem:
    """An item with its nine tiles, the target's first: each is drawn once and stands in all nine composites."""

    item: Item
    tiles: list[Image.Image]

    def composite(self, k: int) -> bytes:
        """The JPEG with the target in cell k."""
        return encode_jpeg(compose(with_target(self.tiles[0], self.tiles[1:], k), GRID))


def render_item(atlas: Atlas, stream: StreamName, number: int) -> RenderedItem:
    """Item `number` of the random stream `stream`: it depends on nothing else."""
    rng, render = random_stream(*stream, number), RenderConfig()
    item = draw_item(atlas, rng, render)
    posed = np.stack([pose(atlas.image(image), rng, render) for image in item.shown])
    return RenderedItem(item, [Image.fromarray(tile) for tile in tiles(posed, rng, render)])


def render_items(atlas: Atlas, stream: StreamName, items: int) -> Iterator[RenderedItem]:
    """The first `items` items of a stream."""
    return (render_item(atlas, stream, number) for number in range(items))


def build_probe_set(folder: Path | str, items: int, seed: int = 0, negatives: bool = True) -> ProbeSet:
    """Write `items` items of nine rows each: <folder>/embedded_probe.json and <folder>/images/<key>_<k>.jpg.

    With `negatives` also embedded_probe_negatives.json: the same composites, asked with the name of an image
    that is not among them. Equal arguments give equal bytes. Raises InputError when there is nothing to draw, or where
    the folder cannot be written.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> build_probe_set(folder, items=1).rows.read_text().splitlines()[4]  # doctest: +ELLIPSIS
    '{"id": 4, "image": "000000000_4.jpg", "caption": ..., "position": "center", "answer": "Yes"}'
    """
    _check_items(items)
    folder = Path(folder)
    found = ProbeSet(folder / ROWS_FILE, folder / NEGATIVES_FILE if negatives else None, folder / IMAGE_FOLDER)
    _make_folder(found.images)
    atlas = Atlas()
    yes_rows: list[dict[str, Any]] = []
    no_rows: list[dict[str, Any]] = []
    for number, rendered in enumerate(render_items(atlas, (*PROBE_STREAM, seed), items)):
        for k in range(len(POSITIONS)):
            _write(found.images / _image_name(number, k), rendered.composite(k))
            yes_rows.append(_row(number, k, atlas.names[rendered.item.target], "Yes"))
            no_rows.append(_row(number, k, atlas.names[rendered.item.absent], "No"))
    _write(found.rows, _lines(yes_rows).encode())
    if found.negatives is not None:
        _write(found.negatives, _lines(no_rows).encode())
    return found


def build_similarity_set(folder: Path | str, items: int, seed: int = 0) -> ProbeSet:
    """Write `items` items of nine rows each: <folder>/embedded_similarity.json and <folder>/images/<key>_<k>.jpg.

    The targets are those of the probe set with the same seed. Equal arguments give equal bytes; a folder that holds
    the same rows already is left as it is. Raises InputError when there is nothing to draw.
    """
    _check_items(items)
    folder = Path(folder)
    made = ProbeSet(folder / SIMILARITY_FILE, None, folder / IMAGE_FOLDER)
    atlas = Atlas()
    rendered = list(render_items(atlas, (*PROBE_STREAM, seed), items))
    cells = [(number, k) for number in range(items) for k in range(len(POSITIONS))]
    text = _lines([_row(number, k, atlas.names[rendered[number].item.target], "Yes") for number, k in cells])
    if made.rows.is_file() and made.rows.read_text(encoding="utf-8") == text:
        return made
    _make_folder(made.images)
    for number, k in cells:
        canvas = compose(alone(rendered[number].tiles[0], k), GRID)
        _write(made.images / _image_name(number, k), encode_jpeg(canvas))
    _write(made.rows, text.encode())  # last: it says that the images are there
    return made


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _write(path: Path, data: bytes) -> None:
    """A whole file. Not synced: whoever finds a set draws it again and compares the bytes."""
    try:
        write_atomic(path, data, sync=False)
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_items(items: int) -> None:
    if items < 1:
        raise InputError(f"A probe set needs at least one item, but items is {items}.")


def _image_name(number: int, k: int) -> str:
    return f"{number:09d}_{k}.jpg"


def _row(number: int, k: int, caption: str, answer: str) -> dict[str, Any]:
    return {
        "id": number * len(POSITIONS) + k,
        "image": _image_name(number, k),
        "caption": caption,
        "position": POSITIONS[k],
        "answer": answer,
    }


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
