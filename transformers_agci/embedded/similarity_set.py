"""The similarity set that needs no download: one atlas image alone on a white canvas, in nine places."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from transformers_agci.data.composites import alone, compose, encode_jpeg
from transformers_agci.data.grid import POSITIONS
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.drawing import Look
from transformers_agci.embedded.probe_set import GRID, IMAGE_FOLDER, ProbeSet, draw_items
from transformers_agci.errors import InputError

ROWS_FILE = "embedded_similarity.json"


def build_similarity_set(folder: Path | str, items: int, seed: int = 0) -> ProbeSet:
    """Write `items` items of nine rows each: <folder>/embedded_similarity.json and <folder>/images/<key>_<k>.jpg.

    The targets are those of the probe set with the same seed. Equal arguments give equal bytes; a folder that holds
    the same rows already is left as it is. Raises InputError when there is nothing to draw.
    """
    if items < 1:
        raise InputError(f"A similarity set needs at least one item, but items is {items}.")
    folder = Path(folder)
    made = ProbeSet(folder / ROWS_FILE, None, folder / IMAGE_FOLDER)
    atlas = Atlas()
    drawn = list(draw_items(atlas, items, seed, Look()))
    rows = [
        _row(number, k, atlas.names[item.item.target])
        for number, item in enumerate(drawn)
        for k in range(len(POSITIONS))
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if made.rows.is_file() and made.rows.read_text(encoding="utf-8") == text:
        return made
    made.images.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(drawn):
        for k in range(len(POSITIONS)):
            (made.images / _name(number, k)).write_bytes(_canvas(item.drawn[0], k))
    made.rows.write_text(text, encoding="utf-8")  # last: it says that the images are there
    return made


def _canvas(target: Image.Image, k: int) -> bytes:
    return encode_jpeg(compose(alone(target, k), GRID))


def _name(number: int, k: int) -> str:
    return f"{number:09d}_{k}.jpg"


def _row(number: int, k: int, caption: str) -> dict[str, Any]:
    return {
        "id": number * len(POSITIONS) + k,
        "image": _name(number, k),
        "caption": caption,
        "position": POSITIONS[k],
        "answer": "Yes",
    }
