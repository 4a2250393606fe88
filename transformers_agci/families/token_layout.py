"""Where the image tokens of an image lie on it: the geometry that every family's layout is made of.

A layout is one or more grids of tokens, each over a region of the image. Tokens that stand for no place (LLaVA-NeXT's
newlines) are in no grid. What a token holds is spread evenly over its rectangle, so that a sum over the image is a sum
over the tokens, also where two grids (tiles and thumbnail) lie over one another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.families.declaration import Family, require

if TYPE_CHECKING:
    import torch


class Region(NamedTuple):
    """A rectangle on the image, as fractions of its width and height; below 0 and above 1 is padding."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Region(0.0, 0.0, 1.0, 1.0)


class TokenGrid(NamedTuple):
    """rows x cols tokens over a region of the image; token (r, c) is number first + r * pitch + c of the image."""

    first: int
    rows: int
    cols: int
    pitch: int
    region: Region = WHOLE

    def values(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """[N] -> [rows, cols]."""
        return tokens.as_strided((self.rows, self.cols), (self.pitch, 1), tokens.storage_offset() + self.first)


@dataclass(frozen=True)
class TokenLayout:
    """The grids of one image of `tokens` image tokens."""

    tokens: int
    grids: tuple[TokenGrid, ...]

    def rasterize(self, values: "torch.Tensor", rows: int, cols: int) -> "torch.Tensor":
        """Values [N] per token as a raster [rows, cols] over the image, float64; the sum is that of placed tokens.

        >>> import torch
        >>> layout = TokenLayout(4, (TokenGrid(0, 2, 2, 2),))
        >>> layout.rasterize(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1, 2).tolist()
        [[4.0, 6.0]]
        """
        import torch

        wide = values.detach().to("cpu", torch.float64).contiguous()
        total = torch.zeros(rows, cols, dtype=torch.float64)
        for grid in self.grids:
            down = _overlaps(rows, grid.region.top, grid.region.bottom, grid.rows)
            across = _overlaps(cols, grid.region.left, grid.region.right, grid.cols)
            total += down @ grid.values(wide) @ across.T
        return total

    def placed(self, values: "torch.Tensor") -> float:
        """The sum of values [N] over the tokens that have a place on the image."""
        return sum(float(grid.values(values.contiguous()).double().sum()) for grid in self.grids)


def _overlaps(cells: int, low: float, high: float, tokens: int) -> "torch.Tensor":
    """[cells, tokens]: the share of each token (equal parts of low..high) inside each cell (equal parts of 0..1)."""
    import torch

    edges = torch.arange(cells + 1, dtype=torch.float64)[:, None] / cells
    bounds = low + (high - low) * torch.arange(tokens + 1, dtype=torch.float64) / tokens
    start = torch.maximum(edges[:-1], bounds[:-1])
    stop = torch.minimum(edges[1:], bounds[1:])
    return (stop - start).clamp_min(0) / ((high - low) / tokens)


class ImageInfo(NamedTuple):
    """One image as a model sees it: its size in pixels, its image tokens, and what decides where they lie."""

    width: int
    height: int
    tokens: int
    config: Any  # the model's
    image_processor: Any
    grid_thw: Sequence[int] | None = None  # patches in time, height, width, where the family's processor says them


def token_layout(family: Family, image: ImageInfo) -> TokenLayout:
    """How the image tokens of an image lie on it.

    Raises InputError if the family declares no layout, or the tokens are not as many as its layout of this image has.
    """
    grids = tuple(require(family, "layout", family.layout)(image))
    # The last grid's newline column may end the image.
    expected = max(grid.first + grid.rows * grid.pitch for grid in grids)
    if image.tokens != expected:
        raise InputError(
            f"An image of {image.width}x{image.height} pixels has {expected} image tokens in "
            f"{family.name}'s layout, but this prompt has {image.tokens}: give one image per question, "
            "and the processor that belongs to the model."
        )
    return TokenLayout(image.tokens, grids)


def patch_grid(image: ImageInfo) -> list[TokenGrid]:
    """The image is resized whole; a square of patches is merged into a token."""
    return grid_of_patches(image, image.config.vision_config.spatial_merge_size)


def grid_of_patches(image: ImageInfo, merge: int) -> list[TokenGrid]:
    """The same, merge x merge patches making a token."""
    if image.grid_thw is None:
        raise InputError("The processor gave no image_grid_thw; it may belong to another model.")
    _, rows, cols = (int(patches) for patches in image.grid_thw)
    return [TokenGrid(0, rows // merge, cols // merge, cols // merge)]


def square(image: ImageInfo) -> list[TokenGrid]:
    """The image is squeezed into a square."""
    side = math.isqrt(image.tokens)
    return [TokenGrid(0, side, side, side)]
