"""What the live page shows a model: one image in each of nine cells, among eight of the embedded atlas."""

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from transformers_agci.data.composites import compose, encode_jpeg, fit, with_target
from transformers_agci.data.draws import random_stream
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.data.images import open_image
from transformers_agci.embedded.atlas import Atlas, RenderConfig, pose, tiles
from transformers_agci.errors import InputError

STREAM = "live page"  # then the seed: the random stream of a scene
MAX_PIXELS = 25_000_000  # of an uploaded image
DISTRACTORS = len(POSITIONS) - 1


@dataclass(frozen=True)
class Scene:
    """Nine composites that differ only in the target's cell, as JPEG, in the order of `POSITIONS`.

    Images of the atlas are posed, coloured and covered with noise as in the embedded model's training data.
    """

    composites: tuple[bytes, ...]

    @classmethod
    def draw(cls, target: str | Path, seed: int, grid: Grid) -> "Scene":
        """`target` is the name of an atlas image, or the file of an image of the user's own.

        Raises InputError for a name that the atlas does not have, and for a file that is no image or is too large.
        """
        atlas, rng = page_atlas(), random_stream(STREAM, seed)
        own = open_image(target, "the uploaded file", MAX_PIXELS) if isinstance(target, Path) else None
        first = [] if own is not None else [_index(atlas, str(target))]
        others = [int(index) for index in rng.permutation(len(atlas)) if int(index) not in first]
        shown = [*first, *others[:DISTRACTORS]]
        posed = np.stack([pose(atlas.image(index), rng, RenderConfig()) for index in shown])
        drawn = [fit(Image.fromarray(tile), grid) for tile in tiles(posed, rng, RenderConfig())]
        if own is not None:
            drawn.insert(0, fit(own, grid))
        cells = range(len(POSITIONS))
        return cls(tuple(encode_jpeg(compose(with_target(drawn[0], drawn[1:], k), grid)) for k in cells))

    def image(self, cell: int) -> Image.Image:
        """The composite with the target in a cell, as the model sees it."""
        with Image.open(io.BytesIO(self.composites[cell])) as image:
            return image.convert("RGB")


@functools.cache
def page_atlas() -> Atlas:
    """The atlas, decoded once for all requests."""
    return Atlas()


def _index(atlas: Atlas, name: str) -> int:
    try:
        return atlas.names.index(name)
    except ValueError:
        raise InputError(f"The atlas has no image {name[:80]!r}; choose one of the list.") from None
