"""The raster of masks on an image: where they lie, which are needless, and the masked copies as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from transformers_agci.errors import InputError

if TYPE_CHECKING:  # maps and reports need the raster, and no torch
    import torch

MASK = 42  # pixels; with an 840x840 image the paper's 20x20 raster
WHITE = (255, 255, 255)


class Mask(NamedTuple):
    """A square of the image, in pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Raster:
    """Square masks of `mask` pixels, `stride` pixels apart, as many as fit on an image of width x height pixels.

    >>> raster = Raster(840, 840)
    >>> raster.rows, raster.cols, raster.at(1, 2)
    (20, 20, Mask(left=84, top=42, right=126, bottom=84))
    """

    width: int
    height: int
    mask: int = MASK
    stride: int = MASK

    @property
    def rows(self) -> int:
        return (self.height - self.mask) // self.stride + 1

    @property
    def cols(self) -> int:
        return (self.width - self.mask) // self.stride + 1

    def at(self, row: int, col: int) -> Mask:
        """The mask of one cell of the raster."""
        left, top = col * self.stride, row * self.stride
        return Mask(left, top, left + self.mask, top + self.mask)

    def masks(self) -> list[Mask]:
        """All masks, row-major."""
        return [self.at(row, col) for row in range(self.rows) for col in range(self.cols)]

    def enlarged(self, values: np.ndarray) -> np.ndarray:
        """A map [rows, cols] as pixels [height, width]: the mean over the masks that cover a pixel, 0 where none does.

        With stride = mask this is every value repeated mask x mask times.
        """
        total, covering = np.zeros((2, self.height, self.width))
        for (left, top, right, bottom), value in zip(self.masks(), values.ravel(), strict=True):
            total[top:bottom, left:right] += value
            covering[top:bottom, left:right] += 1
        return np.divide(total, covering, out=total, where=covering > 0)

    def covered(self) -> np.ndarray:
        """[height, width] bool: the pixels that some mask covers."""
        return self.enlarged(np.ones((self.rows, self.cols))) > 0


def raster_on(image: Image.Image, mask: int, stride: int, where: str) -> Raster:
    """The raster for an image; InputError (naming `where`) if not even one mask fits."""
    if min(image.size) < mask:
        raise InputError(
            f"{where}: the image has {image.width}x{image.height} pixels, which is smaller than "
            f"the mask of {mask} pixels; give a smaller `mask_size`."
        )
    return Raster(*image.size, mask, stride)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Read a colour as Pillow knows it.

    >>> parse_colour("white"), parse_colour("#808080")
    ((255, 255, 255), (128, 128, 128))
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise InputError(f"`colour` {text!r} is not a colour; give a name such as white, or #808080.") from error


def as_tensor(image: Image.Image) -> "torch.Tensor":
    """The pixels of an RGB image, [3, H, W] uint8."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def one_colour(pixels: "torch.Tensor", mask: Mask) -> bool:
    """Whether all pixels of [3, H, W] under the mask are the same: there is nothing to hide."""
    crop = pixels[:, mask.top : mask.bottom, mask.left : mask.right].flatten(1)
    return bool((crop == crop[:, :1]).all())


def masked_copies(
    pixels: "torch.Tensor", masks: Sequence[Mask | None], colour: tuple[int, int, int]
) -> "list[torch.Tensor]":
    """One copy of [3, H, W] per mask with the square painted; None is the image itself."""
    paint = pixels.new_tensor(colour)[:, None, None]
    copies = []
    for mask in masks:
        copy = pixels.clone()
        if mask is not None:
            copy[:, mask.top : mask.bottom, mask.left : mask.right] = paint
        copies.append(copy)
    return copies
