"""The atlas, 400 small images with their names, and how nine of them become a canvas.

Training and probe set draw with the same code. Each image is posed (size, turn, shift), laid on a tile of its own
pastel colour, made brighter or darker, covered with noise; nine tiles make a canvas, and the canvas goes through JPEG
as every image of a probe set does.
"""

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from transformers_agci.data.composites import encode_jpeg

CELL = 84  # pixels: side of an image in the atlas and of a cell on the embedded model's canvas
ATLAS_FOLDER = Path(__file__).parent / "atlas_data"
SIDE = 3  # cells along a side of the canvas
CANVAS = SIDE * CELL  # pixels
WHITE = 255
LOOK_ALIKES = 24  # how many of an image's nearest neighbours count as looking like it


class Atlas:
    """400 Noto emoji with transparent backgrounds and their CLDR short names.

    >>> atlas = Atlas()
    >>> len(atlas), atlas.names[0], atlas.image(0).size
    (400, 'grinning face', (84, 84))
    """

    def __init__(self, folder: Path = ATLAS_FOLDER) -> None:
        listing = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        self.names: list[str] = listing["names"]
        self.emoji: list[str] = listing["emoji"]
        with Image.open(folder / "pictures.webp") as sheet:
            self._sheet = sheet.convert("RGBA")
        self._columns = self._sheet.width // CELL

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """Image `index` (0 to 399, as in `names`): RGBA, 84x84, the drawing about 76 pixels long."""
        row, column = divmod(index, self._columns)
        left, top = column * CELL, row * CELL
        return self._sheet.crop((left, top, left + CELL, top + CELL))

    def neighbours(self, index: int) -> np.ndarray:
        """The 399 other images, by number, the one that looks most like image `index` first."""
        return self._by_likeness[index]

    @functools.cached_property
    def _by_likeness(self) -> np.ndarray:
        """[400, 399]: squared difference of thumbnails decides."""
        thumbnails = np.stack([_thumbnail(self.image(index)) for index in range(len(self))])
        squares = (thumbnails**2).sum(1)
        distances = squares[:, None] + squares[None] - 2 * thumbnails @ thumbnails.T
        np.fill_diagonal(distances, -1)
        return distances.argsort(1, kind="stable")[:, 1:]


def _thumbnail(image: Image.Image) -> np.ndarray:
    """The image on white and on black, each 14x14 RGB: a vector of 1,176 numbers, 0..1."""
    flat = []
    for background in ("white", "black"):
        canvas = Image.new("RGBA", image.size, background)
        canvas.alpha_composite(image)
        small = canvas.convert("RGB").resize((14, 14), Image.Resampling.BOX)
        flat.append(np.asarray(small, dtype=np.float64).ravel() / 255)
    return np.concatenate(flat)


@dataclass(frozen=True)
class RenderConfig:
    """How far a drawn image may depart from the atlas: the difficulty of the task."""

    smallest: float = 0.6  # side of the drawn image / side of its cell
    largest: float = 1.0
    turn: float = 20.0  # degrees, either way
    brightness: float = 0.15  # relative change, either way
    noise: float = 0.28  # standard deviation, 1 = white; one value per 2x2 pixels and channel
    alike: float = 0.25  # share of the other images that are chosen because they look like the target


def pose(image: Image.Image, rng: np.random.Generator, render: RenderConfig) -> np.ndarray:
    """The image smaller, turned and shifted inside its cell: [84, 84, 4] uint8 (RGBA)."""
    size = rng.uniform(render.smallest, render.largest)
    angle = np.deg2rad(rng.uniform(-render.turn, render.turn))
    room = (1 - size) * CELL / 2
    shift_x, shift_y = rng.uniform(-room, room, size=2)
    # Pillow asks for the way back: from a pixel of the result to the pixel of the image it shows.
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    middle = CELL / 2
    back_x = middle - cos * (middle + shift_x) - sin * (middle + shift_y)
    back_y = middle + sin * (middle + shift_x) - cos * (middle + shift_y)
    affine = (cos, sin, back_x, -sin, cos, back_y)
    posed = image.transform((CELL, CELL), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    return np.asarray(posed)


def tiles(posed: np.ndarray, rng: np.random.Generator, render: RenderConfig) -> np.ndarray:
    """Posed images [n, 84, 84, 4] on tiles of their own colour, with brightness and noise: [n, 84, 84, 3] uint8."""
    n = len(posed)
    colour = rng.uniform(0.55 * WHITE, WHITE, size=(n, 1, 1, 3)).astype(np.float32)
    colour[rng.random(n) < 0.25] = WHITE  # as the published probe set
    brightness = 1 + rng.uniform(-render.brightness, render.brightness, size=(n, 1, 1, 1)).astype(np.float32)
    light = posed[..., :3].astype(np.float32)
    light -= colour
    light *= posed[..., 3:] / np.float32(WHITE)
    light += colour
    light *= brightness
    if render.noise:
        grain = rng.standard_normal((n, CELL // 2, 1, CELL // 2, 1, 3), dtype=np.float32)
        light.reshape(n, CELL // 2, 2, CELL // 2, 2, 3)[...] += grain * np.float32(render.noise * WHITE)
    return np.rint(light.clip(0, WHITE, out=light)).astype(np.uint8)


def canvases(drawn: np.ndarray) -> np.ndarray:
    """Tiles [9 * b, 84, 84, 3], row-major within a canvas, as b canvases [b, 252, 252, 3]."""
    grid = drawn.reshape(-1, SIDE, SIDE, CELL, CELL, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, CANVAS, CANVAS, 3)


def through_jpeg(canvas: np.ndarray) -> np.ndarray:
    """The canvas [252, 252, 3] as it looks after having been saved and opened again."""
    with Image.open(io.BytesIO(encode_jpeg(Image.fromarray(canvas)))) as image:
        return np.asarray(image)


@dataclass(frozen=True)
class Item:
    """Ten different images of the atlas, by number."""

    target: int
    distractors: tuple[int, ...]  # eight
    absent: int

    @property
    def shown(self) -> tuple[int, ...]:
        return (self.target, *self.distractors)


def draw_item(atlas: Atlas, rng: np.random.Generator, render: RenderConfig) -> Item:
    """A random target; each of the other nine images looks like it with probability `render.alike`."""
    target = int(rng.integers(len(atlas)))
    near = rng.permutation(atlas.neighbours(target)[:LOOK_ALIKES])
    far = rng.permutation(len(atlas))
    alike = int(rng.binomial(9, render.alike))
    others = [int(image) for image in near[:alike]]
    others += [int(image) for image in far if image != target and image not in others][: 9 - alike]
    others = [int(image) for image in rng.permutation(others)]
    return Item(target, tuple(others[:8]), others[8])
