"""Composites: one target among distractors on a grid, in each of the grid's cells in turn."""

import io
from collections.abc import Sequence
from typing import TypeVar

from PIL import Image

from transformers_agci.data.grid import Grid
from transformers_agci.data.images import as_rgb
from transformers_agci.errors import InputError

T = TypeVar("T")


def with_target(target: T, distractors: Sequence[T], k: int) -> list[T]:
    """Cells in row-major order with the target inserted at cell k; the distractors keep their order around it.

    >>> with_target("T", ["a", "b", "c"], 1)
    ['a', 'T', 'b', 'c']
    """
    if not 0 <= k <= len(distractors):
        raise InputError(f"Cell {k} does not exist: cells are 0 to {len(distractors)}.")
    return [*distractors[:k], target, *distractors[k:]]


def alone(target: T, k: int, cells: int = 9) -> list[T | None]:
    """Cells of which only k is filled: a row of the similarity set."""
    return [target if cell == k else None for cell in range(cells)]


def fit(image: Image.Image, grid: Grid, background: str = "white") -> Image.Image:
    """A sub-image as RGB in the size its cell gives it; transparent parts show the background."""
    rgb = as_rgb(image, "a sub-image", background)
    size = grid.fitted(rgb.size)
    return rgb if rgb.size == size else rgb.resize(size, Image.Resampling.LANCZOS)


def smaller(image: Image.Image, side: int, grid: Grid, background: str = "white") -> Image.Image:
    """A sub-image of `side` px in the middle of a box that is filled with the background."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    box = Image.new("RGB", (grid.box, grid.box), background)
    box.paste(as_rgb(image, "a sub-image", background).resize(size, Image.Resampling.LANCZOS), _middle(grid.box, size))
    return box


def _middle(box: int, size: tuple[int, int]) -> tuple[int, int]:
    return (box - size[0]) // 2, (box - size[1]) // 2


def compose(images: Sequence[Image.Image | None], grid: Grid, background: str = "white") -> Image.Image:
    """Lay images into the grid's cells, row-major; None leaves a cell empty. Returns an RGB canvas.

    Every image keeps its aspect ratio, fills its box with its longer side and stands centred in it.

    >>> compose([Image.new("RGB", (20, 10), "red")] + [None] * 8, Grid()).getpixel((8, 80))
    (255, 0, 0)
    """
    if len(images) != len(grid):
        raise InputError(f"A {grid.rows}x{grid.cols} grid takes {len(grid)} images, but got {len(images)}.")
    canvas = Image.new("RGB", (grid.canvas, grid.canvas), background)
    for cell, image in enumerate(images):
        if image is not None:
            fitted = fit(image, grid, background)
            canvas.paste(fitted, grid.placed(fitted.size, cell))
    return canvas


def encode_jpeg(image: Image.Image, quality: int = 75) -> bytes:
    """The image as baseline JPEG with 4:2:0 chroma, as the published composites have it at quality 75."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def image_name(key: str, k: int) -> str:
    """The file name of the composite with target `key` in cell k."""
    return f"{key}_{k}.jpg"
