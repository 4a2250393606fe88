"""How a canvas of nine atlas images is drawn: the same code for training and for the probe set.

Each image is posed (size, turn, shift), laid on a tile of its own pastel colour, made brighter or darker, covered
with noise; nine tiles make a canvas, and the canvas goes through JPEG as every image of a probe set does.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from transformers_agci.data.composites import encode_jpeg
from transformers_agci.embedded.atlas import CELL

SIDE = 3  # cells along a side of the canvas
CANVAS = SIDE * CELL  # pixels
WHITE = 255


@dataclass(frozen=True)
class Look:
    """How far a drawn image may depart from the atlas: the difficulty of the task."""

    smallest: float = 0.6  # side of the drawn image / side of its cell
    largest: float = 1.0
    turn: float = 20.0  # degrees, either way
    brightness: float = 0.15  # relative change, either way
    noise: float = 0.12  # standard deviation, 1 = white; one value per 2x2 pixels and channel
    alike: float = 0.25  # share of the other images that are chosen because they look like the target


def pose(picture: Image.Image, rng: np.random.Generator, look: Look) -> np.ndarray:
    """The image smaller, turned and shifted inside its cell: [84, 84, 4] uint8 (RGBA)."""
    size = rng.uniform(look.smallest, look.largest)
    angle = np.deg2rad(rng.uniform(-look.turn, look.turn))
    room = (1 - size) * CELL / 2
    shift_x, shift_y = rng.uniform(-room, room, size=2)
    # Pillow asks for the way back: from a pixel of the result to the pixel of the image it shows.
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    middle = CELL / 2
    back_x = middle - cos * (middle + shift_x) - sin * (middle + shift_y)
    back_y = middle + sin * (middle + shift_x) - cos * (middle + shift_y)
    affine = (cos, sin, back_x, -sin, cos, back_y)
    posed = picture.transform((CELL, CELL), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    return np.asarray(posed)


def tiles(posed: np.ndarray, rng: np.random.Generator, look: Look) -> np.ndarray:
    """Posed images [n, 84, 84, 4] on tiles of their own colour, with brightness and noise: [n, 84, 84, 3] uint8."""
    n = len(posed)
    colour = rng.uniform(0.55 * WHITE, WHITE, size=(n, 1, 1, 3)).astype(np.float32)
    colour[rng.random(n) < 0.25] = WHITE  # as the published probe set
    brightness = 1 + rng.uniform(-look.brightness, look.brightness, size=(n, 1, 1, 1)).astype(np.float32)
    light = posed[..., :3].astype(np.float32)
    light -= colour
    light *= posed[..., 3:] / np.float32(WHITE)
    light += colour
    light *= brightness
    if look.noise:
        grain = rng.standard_normal((n, CELL // 2, 1, CELL // 2, 1, 3), dtype=np.float32)
        light.reshape(n, CELL // 2, 2, CELL // 2, 2, 3)[...] += grain * np.float32(look.noise * WHITE)
    return np.rint(light.clip(0, WHITE, out=light)).astype(np.uint8)


def canvases(drawn: np.ndarray) -> np.ndarray:
    """Tiles [9 * b, 84, 84, 3], row-major within a canvas, as b canvases [b, 252, 252, 3]."""
    grid = drawn.reshape(-1, SIDE, SIDE, CELL, CELL, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, CANVAS, CANVAS, 3)


def through_jpeg(canvas: np.ndarray) -> np.ndarray:
    """The canvas [252, 252, 3] as it looks after having been saved and opened again."""
    with Image.open(io.BytesIO(encode_jpeg(Image.fromarray(canvas)))) as image:
        return np.asarray(image)
