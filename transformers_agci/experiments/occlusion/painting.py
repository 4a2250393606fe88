"""Masked copies made where the model is: the image crosses once, and of a copy only what its mask covers is painted.

What a processor makes of an image is, where it does not resize, the image's own bytes in another order (Qwen: patches
of two equal frames). That order is read off five images of the same size whose bytes say where they are:

    pixel (x, y) of the images   x % 256, x // 256, y % 256, y // 256, and its channel 0, 1, 2
    after the processor          of every value: its x, its y, its channel

If the real image's bytes, put into this order, are what the processor makes of it, a mask is painted into the values
whose x and y it covers: the very tensor that the processor makes of the painted image. Otherwise (an image that is
resized, cropped or cut into tiles) every copy goes through the processor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from transformers_agci.experiments.forced_answer import ForcedAnswer
from transformers_agci.experiments.occlusion.masks import Mask
from transformers_agci.inference.host_values import crossing
from transformers_agci.inference.prepare import PIXELS, TEXT_KEYS, RawPixels, raw_pixels

Inputs = dict[str, torch.Tensor]


class Painter:
    """Makes the model's inputs for masked copies of one image, on the model's device.

    order   [3, P, C] of every value of the pixels [P, C]: its x, y and channel; on the CPU
    """

    def __init__(
        self, asked: ForcedAnswer, alone: Mapping[str, torch.Tensor], raw: RawPixels, made: torch.Tensor, order: Any
    ) -> None:
        self.device, dtype = asked.loaded.device, asked.loaded.model.dtype
        self._x, self._y, self._channel = (crossing(part, self.device) for part in order)
        x, y = order[0].flatten(1), order[1].flatten(1)
        self._extent = torch.stack([x.amin(1), y.amin(1), x.amax(1), y.amax(1)], dim=1)  # [P, 4] of a row of values
        self._raw, self._dtype = raw, dtype
        self._pixels = raw.normalise(crossing(made, self.device)).to(dtype)
        self._others = {
            name: crossing(value, self.device) for name, value in alone.items() if name != PIXELS
        }  # text, grid

    def paint_with(self, colour: tuple[int, int, int]) -> "Painter":
        """Choose the colour of the masks."""
        paint = torch.tensor(colour, dtype=torch.uint8, device=self.device)[self._channel]
        self._paint = self._raw.normalise(paint).to(self._dtype)
        return self

    def copies(self, masks: Sequence[Mask | None]) -> Inputs:
        """The inputs of one call: the image once per mask, with the square painted; None is the image itself."""
        whole = self._pixels.repeat(len(masks), *[1] * (self._pixels.dim() - 1))
        touched = [(copy, mask, self._rows(mask)) for copy, mask in enumerate(masks) if mask is not None]
        if touched:
            rows = crossing(torch.cat([found for *_, found in touched]), self.device)
            places = crossing(torch.cat([found + copy * len(self._pixels) for copy, _, found in touched]), self.device)
            bounds = torch.cat([torch.tensor([mask]).expand(len(found), 4) for _, mask, found in touched])
            left, top, right, bottom = crossing(bounds.contiguous(), self.device)[
                (..., *[None] * (whole.dim() - 1))
            ].unbind(1)
            x, y = self._x[rows], self._y[rows]
            covered = (x >= left) & (x < right) & (y >= top) & (y < bottom)
            whole[places] = torch.where(covered, self._paint[rows], self._pixels[rows])
        others = {name: value.repeat(len(masks), *[1] * (value.dim() - 1)) for name, value in self._others.items()}
        return {**others, PIXELS: whole}

    def _rows(self, mask: Mask) -> torch.Tensor:
        """The rows of values that lie under the mask, in part or whole; on the CPU."""
        left, top, right, bottom = self._extent.unbind(1)
        meets = (left < mask.right) & (right >= mask.left) & (top < mask.bottom) & (bottom >= mask.top)
        return meets.nonzero()[:, 0]


def find_painter(
    asked: ForcedAnswer, pixels: torch.Tensor, alone: Mapping[str, torch.Tensor], colour: tuple[int, int, int]
) -> Painter | None:
    """A painter for the image [3, H, W] whose inputs are `alone`; None where the processor does more than reorder."""
    raw = raw_pixels(asked.loaded.processor)
    if raw is None or set(alone) - TEXT_KEYS - {PIXELS, "image_grid_thw"}:
        return None

    def processed(image: torch.Tensor) -> torch.Tensor:
        return raw.processor.image_processor(images=[image], return_tensors="pt")[PIXELS]

    made = processed(pixels)
    if made.dtype != torch.uint8 or made.shape != alone[PIXELS].shape:
        return None
    order = _order(processed, *pixels.shape[1:])
    x, y, channel = order
    inside = bool((x < pixels.shape[2]).all() and (y < pixels.shape[1]).all() and (channel < 3).all())
    if not inside or not torch.equal(pixels[channel, y, x], made):
        return None
    return Painter(asked, alone, raw, made, order).paint_with(colour)


def _order(processed: Any, height: int, width: int) -> torch.Tensor:
    """[3, ...]: of every value that the processor makes its x, its y, its channel."""
    x, y = torch.arange(width).expand(height, -1), torch.arange(height)[:, None].expand(-1, width)
    whole = [
        processed(part.to(torch.uint8).expand(3, -1, -1).contiguous()).long()
        for part in (x % 256, x // 256, y % 256, y // 256)
    ]
    channel = processed(torch.arange(3, dtype=torch.uint8)[:, None, None].expand(-1, height, width).contiguous()).long()
    return torch.stack([whole[0] + 256 * whole[1], whole[2] + 256 * whole[3], channel])
