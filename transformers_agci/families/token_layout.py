"""Where the image tokens of each family lie on the image: one entry per family in LAYOUTS.

A layout is one or more grids of tokens, each over a rectangle of the image. Tokens that stand for no place
(LLaVA-NeXT's newlines) are in no grid. What a token holds is spread evenly over its rectangle, so that a sum over the
image is a sum over the tokens, also where two grids (tiles and thumbnail) lie over one another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from transformers_agci.errors import InputError
from transformers_agci.families import Family, anyres_layout


class Part(NamedTuple):
    """A rectangle on the image, as fractions of its width and height; below 0 and above 1 is padding."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Part(0.0, 0.0, 1.0, 1.0)


class TokenGrid(NamedTuple):
    """rows x cols tokens over a part of the image; token (r, c) is number first + r * pitch + c of the image."""

    first: int
    rows: int
    cols: int
    pitch: int
    part: Part = WHOLE

    def values(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N] -> [rows, cols]."""
        return tokens.as_strided((self.rows, self.cols), (self.pitch, 1), tokens.storage_offset() + self.first)


@dataclass(frozen=True)
class TokenLayout:
    """The grids of one image of `tokens` image tokens."""

    tokens: int
    grids: tuple[TokenGrid, ...]

    def mass(self, values: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        """Values [N] per token as a raster [rows, cols] over the image, float64; the sum is that of placed tokens.

        >>> layout = TokenLayout(4, (TokenGrid(0, 2, 2, 2),))
        >>> layout.mass(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1, 2).tolist()
        [[4.0, 6.0]]
        """
        wide = values.detach().to("cpu", torch.float64).contiguous()
        total = torch.zeros(rows, cols, dtype=torch.float64)
        for grid in self.grids:
            down = _overlaps(rows, grid.part.top, grid.part.bottom, grid.rows)
            across = _overlaps(cols, grid.part.left, grid.part.right, grid.cols)
            total += down @ grid.values(wide) @ across.T
        return total

    def placed(self, values: torch.Tensor) -> float:
        """The sum of values [N] over the tokens that have a place on the image."""
        return sum(float(grid.values(values.contiguous()).double().sum()) for grid in self.grids)


def _overlaps(cells: int, low: float, high: float, tokens: int) -> torch.Tensor:
    """[cells, tokens]: the share of each token (equal parts of low..high) inside each cell (equal parts of 0..1)."""
    edges = torch.arange(cells + 1, dtype=torch.float64)[:, None] / cells
    bounds = low + (high - low) * torch.arange(tokens + 1, dtype=torch.float64) / tokens
    start = torch.maximum(edges[:-1], bounds[:-1])
    stop = torch.minimum(edges[1:], bounds[1:])
    return (stop - start).clamp_min(0) / ((high - low) / tokens)


class Shown(NamedTuple):
    """One image as a model sees it: its size in pixels, its image tokens, and what decides where they lie."""

    width: int
    height: int
    tokens: int
    config: Any  # the model's
    image_processor: Any
    grid_thw: Sequence[int] | None = None  # patches in time, height, width, where the family's processor says them


def token_layout(family: Family, shown: Shown) -> TokenLayout:
    """How the image tokens of an image lie on it.

    Raises InputError if they are not as many as the family's layout of this image has.
    """
    grids = tuple(LAYOUTS[family.model_type](shown))
    # The last grid's newline column may end the image.
    expected = max(grid.first + grid.rows * grid.pitch for grid in grids)
    if shown.tokens != expected:
        raise InputError(
            f"An image of {shown.width}x{shown.height} pixels has {expected} image tokens in "
            f"{family.name}'s layout, but this prompt has {shown.tokens}: give one image per question, "
            "and the processor that belongs to the model."
        )
    return TokenLayout(shown.tokens, grids)


def _patch_grid(shown: Shown) -> list[TokenGrid]:
    """Qwen: the image is resized whole, 2x2 patches are merged into a token."""
    if shown.grid_thw is None:
        raise ValueError("the processor gave no image_grid_thw")
    merge = shown.config.vision_config.spatial_merge_size
    _, rows, cols = (int(patches) for patches in shown.grid_thw)
    return [TokenGrid(0, rows // merge, cols // merge, cols // merge)]


def _square(shown: Shown) -> list[TokenGrid]:
    """Gemma3n: the image is squeezed into a square."""
    side = math.isqrt(shown.tokens)
    return [TokenGrid(0, side, side, side)]


def _cropped_square(shown: Shown) -> list[TokenGrid]:
    """LLaVA: the shorter side is fitted and the middle cropped, or the image is padded to a square, as told."""
    side = math.isqrt(shown.tokens)
    return [TokenGrid(0, side, side, side, _middle(shown))]


def _middle(shown: Shown) -> Part:
    told = shown.image_processor.to_dict()
    shortest = (told.get("size") or {}).get("shortest_edge")
    if not told.get("do_center_crop") or not shortest:
        return WHOLE
    padded = bool(told.get("do_pad"))  # the tokens then reach beyond the image
    scale = shortest / (max if padded else min)(shown.width, shown.height)
    wide = told["crop_size"]["width"] / (shown.width * scale)
    tall = told["crop_size"]["height"] / (shown.height * scale)
    if not padded:
        wide, tall = min(1.0, wide), min(1.0, tall)
    return Part((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)


def _base_and_tiles(shown: Shown) -> list[TokenGrid]:
    """LLaVA-NeXT: the image squeezed into a square, then the tiles' grid, a newline token ending each of its rows."""
    layout = anyres_layout(shown.config, shown.height, shown.width)
    base = layout.side**2
    return [
        TokenGrid(0, layout.side, layout.side, layout.side),
        TokenGrid(base, layout.rows, layout.columns, layout.columns + 1),
    ]


def _tiles_and_thumbnail(shown: Shown) -> list[TokenGrid]:
    """InternVL: the image squeezed into rows x cols square tiles, and where there are several a thumbnail last."""
    per_tile = int(shown.config.image_seq_length)
    side = math.isqrt(per_tile)
    images = shown.tokens // per_tile
    if images <= 1:
        return [TokenGrid(0, side, side, side)]
    tiles = images - 1
    rows, cols = _tile_grid(tiles, shown.width / shown.height)
    grids = [TokenGrid(number * per_tile, side, side, side, _tile(number, rows, cols)) for number in range(tiles)]
    return [*grids, TokenGrid(tiles * per_tile, side, side, side)]


def _tile_grid(tiles: int, aspect: float) -> tuple[int, int]:
    """(rows, cols) of that many tiles: the processor takes the grid whose cols / rows is next to width / height."""
    choices = [(tiles // cols, cols) for cols in range(1, tiles + 1) if tiles % cols == 0]
    return min(choices, key=lambda choice: abs(aspect - choice[1] / choice[0]))


def _tile(number: int, rows: int, cols: int) -> Part:
    row, col = divmod(number, cols)
    return Part(col / cols, row / rows, (col + 1) / cols, (row + 1) / rows)


LAYOUTS: Mapping[str, Callable[[Shown], list[TokenGrid]]] = MappingProxyType(
    {
        "qwen2_5_vl": _patch_grid,
        "qwen3_vl": _patch_grid,
        "gemma3n": _square,
        "internvl": _tiles_and_thumbnail,
        "llava_next": _base_and_tiles,
        "llava": _cropped_square,
    }
)
