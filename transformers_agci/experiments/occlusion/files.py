"""What an occlusion run leaves for each image, and reading it back.

<name>/<name>_crop_scores.json    the row, the answer, the raw logits of every masked copy, the raw map
<name>/<name>_attention_map.json  the map [rows][cols], 0..1
<name>/<name>_attention_map.png   the map over the image
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.images import MAX_PIXELS
from transformers_agci.data.rows import (
    Row,
    number_table,
    require_object,
    require_one_of,
    require_text,
    require_whole_number,
)
from transformers_agci.errors import InputError, clipped, short
from transformers_agci.experiments.items import target_box
from transformers_agci.experiments.occlusion.masks import Raster
from transformers_agci.report.heatmap import write_figure
from transformers_agci.report.overlay import Overlay, overlay_figure
from transformers_agci.storage import manifest
from transformers_agci.storage.json_file import write_json
from transformers_agci.storage.reading import kind_of, path_text, read_json

# What a row of occlusion.jsonl has of its own, behind the input row.
SUMMARY_FIELDS = ("prediction", "answer_tokens", "raster", "masked_copies", "largest_difference")
NAMES_SHOWN = 10  # of unfinished images
SCORES, MAP, IMAGE = "_crop_scores.json", "_attention_map.json", "_attention_map.png"


@dataclass(frozen=True)
class Occluded:
    """One image's result.

    original       [T] raw logits of the answer's tokens
    masked         per cell of the raster [T] logits, None where the crop was one colour and was not run
    differences    [rows, cols], unscaled
    """

    row: Mapping[str, Any]
    prediction: str
    tokens: tuple[int, ...]
    raster: Raster
    colour: tuple[int, int, int]
    original: list[float]
    masked: list[list[float] | None]
    differences: np.ndarray
    image: Image.Image

    @property
    def scaled(self) -> np.ndarray:
        """The map divided by its maximum; all 0 where no mask changed anything."""
        most = self.differences.max()
        return self.differences / most if most > 0 else self.differences

    @property
    def summary(self) -> dict[str, Any]:
        """The row of occlusion.jsonl."""
        run = sum(logits is not None for logits in self.masked)
        raster = [self.raster.rows, self.raster.cols]
        own = (self.prediction, len(self.tokens), raster, run, float(self.differences.max()))
        return {**self.row, **dict(zip(SUMMARY_FIELDS, own, strict=True))}


def write_image_files(output_dir: Path, name: str, occluded: Occluded) -> None:
    """Write the three files of an image, each whole or not at all."""
    folder = output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    _draw(folder / f"{name}{IMAGE}", occluded)
    raster = occluded.raster
    scores = {
        "row": dict(occluded.row),
        "prediction": occluded.prediction,
        "tokens": list(occluded.tokens),
        "width": raster.width,
        "height": raster.height,
        "mask_size": raster.mask,
        "stride": raster.stride,
        "colour": list(occluded.colour),
        "rows": raster.rows,
        "cols": raster.cols,
        "original_logits": occluded.original,
        "masked_logits": occluded.masked,
        "differences": occluded.differences.tolist(),
    }
    write_json(folder / f"{name}{SCORES}", scores, indent=None)
    write_json(folder / f"{name}{MAP}", occluded.scaled.tolist(), indent=None)


def _draw(path: Path, occluded: Occluded) -> None:
    raster, row = occluded.raster, occluded.row
    box = target_box(POSITIONS.index(row["position"]), raster.width, raster.height)
    largest = occluded.differences.max()
    change = f"largest change {largest:.3g} logits" if largest > 0 else "no mask changes the answer's logits"
    note = f"{change}\nanswer: {clipped(occluded.prediction, 24)}"
    shown = Overlay(raster.enlarged(occluded.scaled), "what the answer depends on", note, box)
    figure = overlay_figure(
        occluded.image,
        [shown],
        label="change of the answer's logits / largest change",
        title=str(row["caption"]),
        top=1.0,
    )
    write_figure(figure, path)


class ImageMap(NamedTuple):
    """A finished image as read back: where its target stands, its raster, its map [rows, cols], 0..1, file, caption."""

    name: str
    item: str
    cell: int
    raster: Raster
    values: np.ndarray
    image: str = ""
    caption: str = ""


class Folder(NamedTuple):
    """What a results folder holds: the finished images, and the names of the unfinished."""

    maps: list[ImageMap]
    unfinished: list[str]


def read_folder(folder: Path) -> Folder:
    """Read all images of a results folder; those planned or begun without whole files are named.

    Raises InputError if there is no such folder, or no finished image in it.
    """
    if not folder.is_dir():
        raise InputError(f"`prob_results_dir`: there is no folder {folder}; give the folder that agci occlusion wrote.")
    found = manifest.read(folder / "occlusion.jsonl")
    planned = _planned(found["notes"], folder) if found else []
    begun = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    maps, unfinished = [], []
    for name in dict.fromkeys([*planned, *begun]):
        image = _read_image(folder, name)
        if image is None:
            unfinished.append(name)
        else:
            maps.append(image)
    if not maps:
        there = f"; none of its folders is whole: {listed(unfinished)}" if unfinished else ""
        raise InputError(
            f"{folder} holds no finished image (<name>/<name>{SCORES} and <name>/<name>{MAP}){there}; run "
            "agci occlusion into this folder first."
        )
    return Folder(maps, unfinished)


def _planned(notes: Mapping[str, Any], folder: Path) -> list[str]:
    """The names of the images that a run was to mask, from its manifest."""
    names = notes.get("pictures", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(
            f'{path_text(manifest.path_of(folder / "occlusion.jsonl"))}: "pictures" must be a list of names of images, '
            f"but is {short(names)}; restore the file, or remove it to read every image that is there."
        )
    return names


def _read_image(folder: Path, name: str) -> ImageMap | None:
    """A finished image; None where one of its files is missing or torn, InputError where one holds something else."""
    scores_file, map_file = (folder / name / f"{name}{suffix}" for suffix in (SCORES, MAP))
    try:
        scores, values = (read_json(file, nan=True) for file in (scores_file, map_file))
    except InputError:
        return None
    where = path_text(scores_file)
    if not isinstance(scores, dict):
        raise InputError(f"{where}: the file must hold a JSON object, but holds {kind_of(scores)}.")
    row = require_object(scores, "row", where)
    cell = POSITIONS.index(require_one_of(row, "position", POSITIONS, where))
    raster = _raster_of(scores, where)
    table = number_table(values, "the map", path_text(map_file), (raster.rows, raster.cols), 0, 1)
    caption = row.get("caption")
    known = caption if isinstance(caption, str) else ""
    return ImageMap(name, _item(name, cell), cell, raster, table, require_text(row, "image", where), known)


def _raster_of(scores: Row, where: str) -> Raster:
    width, height = (require_whole_number(scores, side, where, 1, MAX_PIXELS) for side in ("width", "height"))
    if width * height > MAX_PIXELS:
        raise InputError(f'{where}: "width" x "height" must be at most {MAX_PIXELS} pixels, but is {width} x {height}.')
    mask = require_whole_number(scores, "mask_size", where, 1, min(width, height))
    return Raster(width, height, mask, require_whole_number(scores, "stride", where, 1, MAX_PIXELS))


def _item(name: str, cell: int) -> str:
    """The key of <key>_<k>; an image that is not named so is an item of its own."""
    key, _, number = name.rpartition("_")
    return key if key and number == str(cell) else name


def listed(names: Sequence[str]) -> str:
    """The first few names for a message."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
