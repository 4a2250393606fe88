"""Masked copies made where the model is: the image crosses once, and of a copy only what its mask covers is painted.

What a processor makes of an image is, where it does not resize, the image's own bytes in another order (Qwen: patches
of two equal frames). That order is read off five images of the same size whose bytes say where they are:

    pixel (x, y) of the images   x % 256, x // 256, y % 256, y // 256, and its channel 0, 1, 2
    after the processor          of every value: its x, its y, its channel

If the bytes of a real image, put into this order, are what the processor makes of it, a mask is painted into the values
whose x and y it covers: the very tensor that the processor makes of the painted image. Otherwise (an image that is
resized, cropped or cut into tiles) every copy goes through the processor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from transformers_agci.experiments.forced_answer import ForcedAnswer
from transformers_agci.experiments.occlusion.masks import Mask, masked_copies
from transformers_agci.inference.host_values import REMEMBERED, crossing
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import PIXELS, TEXT_KEYS, TOLERANCE, RawPixels, crossing_pixels, raw_pixels

Inputs = dict[str, torch.Tensor]
Process = Callable[[torch.Tensor], torch.Tensor]  # an image [3, H, W] uint8 -> its pixels as the model takes them
SERVED = TEXT_KEYS | {PIXELS, "image_grid_thw"}  # what inputs may hold: all but the pixels is the same for every copy


class Order(NamedTuple):
    """Of every value of the pixels [P, ...] its x, y and channel in the image, on the CPU."""

    x: torch.Tensor
    y: torch.Tensor
    channel: torch.Tensor

    def of(self, image: torch.Tensor) -> torch.Tensor:
        """The values of an image [3, H, W] in this order."""
        return image[self.channel.long(), self.y.long(), self.x.long()]


class Processed:
    """Masked copies [3, H, W] painted on the CPU, each made the model's input by the processor."""

    painted = False

    def __init__(self, asked: ForcedAnswer, image: torch.Tensor, colour: tuple[int, int, int]) -> None:
        self._asked, self._image, self._colour = asked, image, colour

    def copies(self, masks: Sequence[Mask | None]) -> Inputs:
        """As `Painter.copies`, on the CPU."""
        return self._asked.inputs(masked_copies(self._image, masks, self._colour))


class Painter:
    """Makes the model's inputs for masked copies of one image, the pixels on the model's device.

    others  text and grid of a batch of one, on the CPU
    made    the image's own bytes in the order of the pixels
    """

    painted = True

    def __init__(
        self, loaded: LoadedModel, raw: RawPixels, order: Order, made: torch.Tensor, others: Mapping[str, torch.Tensor]
    ) -> None:
        self.loaded, self._raw, self._others = loaded, raw, others
        self._order = Order(*(crossing(part, loaded.device) for part in order))
        x, y = order.x.flatten(1), order.y.flatten(1)
        self._extent = torch.stack([x.amin(1), y.amin(1), x.amax(1), y.amax(1)], dim=1)  # [P, 4] of a row of values
        self._pixels = self._as_model(crossing(made, loaded.device))

    def paint_with(self, colour: tuple[int, int, int]) -> "Painter":
        """Choose the colour of the masks."""
        paint = crossing(torch.tensor(colour, dtype=torch.uint8), self.loaded.device)
        self._paint = self._as_model(paint[self._order.channel.long()])
        return self

    def copies(self, masks: Sequence[Mask | None]) -> Inputs:
        """The inputs of one call: the image once per mask, with the square painted; None is the image itself."""
        device = self.loaded.device
        whole = self._pixels.repeat(len(masks), *[1] * (self._pixels.dim() - 1))
        touched = [(copy, mask, self._rows(mask)) for copy, mask in enumerate(masks) if mask is not None]
        if touched:
            rows = crossing(torch.cat([found for *_, found in touched]), device)
            places = crossing(torch.cat([found + copy * len(self._pixels) for copy, _, found in touched]), device)
            bounds = torch.cat([torch.tensor([mask]).expand(len(found), 4) for _, mask, found in touched])
            left, top, right, bottom = crossing(bounds.contiguous(), device)[(..., *[None] * (whole.dim() - 1))].unbind(
                1
            )
            x, y = self._order.x[rows], self._order.y[rows]
            covered = (x >= left) & (x < right) & (y >= top) & (y < bottom)
            whole[places] = torch.where(covered, self._paint[rows], self._pixels[rows])
        others = {name: value.repeat(len(masks), *[1] * (value.dim() - 1)) for name, value in self._others.items()}
        return {**others, PIXELS: whole}

    def _rows(self, mask: Mask) -> torch.Tensor:
        """The rows of values that lie under the mask, in part or whole; on the CPU."""
        left, top, right, bottom = self._extent.unbind(1)
        meets = (left < mask.right) & (right >= mask.left) & (top < mask.bottom) & (bottom >= mask.top)
        return meets.nonzero()[:, 0]

    def _as_model(self, values: torch.Tensor) -> torch.Tensor:
        return self._raw.normalise(values).to(self.loaded.model.dtype)


class Painters:
    """Finds the painter of each image; the order of a size is read off once."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.raw = raw_pixels(loaded.processor) if "painting" in loaded.quick else None
        self.crossing = crossing_pixels(loaded)  # of copies that the processor makes
        self._orders: dict[tuple[int, int], Order | None] = {}  # by height and width, of the last sizes

    def of(
        self, asked: ForcedAnswer, image: torch.Tensor, alone: Mapping[str, torch.Tensor], colour: tuple[int, int, int]
    ) -> Painter | Processed:
        """What makes masked copies of the image [3, H, W] whose inputs are `alone`: a painter unless the processor
        does more than reorder, or painting is off.
        """
        order = self._order(image, alone)
        if self.raw is None or order is None:
            return Processed(asked, image, colour)
        others = {name: value for name, value in alone.items() if name != PIXELS}
        return Painter(self.loaded, self.raw, order, order.of(image), others).paint_with(colour)

    def _order(self, image: torch.Tensor, alone: Mapping[str, torch.Tensor]) -> Order | None:
        """The order of this image's pixels, if they are its bytes."""
        if self.raw is None or alone.keys() - SERVED or not all(isinstance(v, torch.Tensor) for v in alone.values()):
            return None
        height, width = image.shape[1:]
        if (height, width) not in self._orders:
            while len(self._orders) >= REMEMBERED:  # 38 MB for 840x840 pixels
                self._orders.pop(next(iter(self._orders)))
            self._orders[height, width] = self._find_order(height, width)
        order = self._orders[height, width]
        given = alone[PIXELS] if alone[PIXELS].dtype == torch.uint8 else self._bytes(image)
        return order if order is not None and torch.equal(order.of(image), given) else None

    def _find_order(self, height: int, width: int) -> Order | None:
        """The order for images of this size, if painted noise in it is what the real processor makes of it."""
        assert self.raw is not None
        order = _read_order(self._bytes, height, width)
        if order is None:
            return None
        noise = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        (painted,) = masked_copies(noise, [Mask(width // 3, height // 3, width // 2, height // 2)], (1, 2, 3))
        ours, stock = self.raw.normalise(order.of(painted)), self._processed(self.loaded.processor, painted)
        agree = ours.shape == stock.shape and float((ours - stock).abs().max()) <= TOLERANCE
        return order if agree else None

    def _bytes(self, image: torch.Tensor) -> torch.Tensor:
        """What the processor makes of an image before it is normalised."""
        assert self.raw is not None
        return self._processed(self.raw.processor, image)

    def _processed(self, processor: Any, image: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = processor.image_processor(images=[image], return_tensors="pt")[PIXELS]
        return pixels


def _read_order(processed: Process, height: int, width: int) -> Order | None:
    """Of every value that the processor makes its x, its y, its channel; None where it has no such order."""
    x, y = torch.arange(width).expand(height, -1), torch.arange(height)[:, None].expand(-1, width)
    parts = [
        processed(part.to(torch.uint8).expand(3, -1, -1).contiguous())
        for part in (x % 256, x // 256, y % 256, y // 256)
    ]
    channel = processed(torch.arange(3, dtype=torch.uint8)[:, None, None].expand(-1, height, width).contiguous())
    if any(part.dtype != torch.uint8 or part.shape != channel.shape for part in parts):
        return None
    low_x, high_x, low_y, high_y = (part.int() for part in parts)
    order = Order(low_x + 256 * high_x, low_y + 256 * high_y, channel)
    inside = bool((order.x < width).all() and (order.y < height).all() and (channel < 3).all())
    return order if inside else None
