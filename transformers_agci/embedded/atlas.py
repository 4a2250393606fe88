"""The atlas: 400 small images with their names, everything that the embedded model has ever seen."""

import functools
import json
from pathlib import Path

import numpy as np
from PIL import Image

CELL = 84  # pixels: side of an image in the atlas and of a cell on the embedded model's canvas
ATLAS_FOLDER = Path(__file__).parent / "atlas_data"


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
