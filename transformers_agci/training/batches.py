"""Rows of a data set as batches: images within the recipe's bounds, rows encoded when they are needed and padded."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from transformers_agci.data.images import decode_image, read_image, resolve_below
from transformers_agci.data.sharegpt import Conversation
from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES, Lacks, require
from transformers_agci.families.training_support import Bound, Size
from transformers_agci.training.encoding import IGNORED, Encoded, Encoder

PAD_TO = 8  # a batch's length is a multiple of this, which GPUs like


@dataclass(frozen=True)
class Bounds:
    """How large an image may be before the image processor sees it, and whether it is cut into tiles."""

    max_pixels: int = 768 * 768
    min_pixels: int = 32 * 32
    crop_to_patches: bool = False

    def __post_init__(self) -> None:
        if self.min_pixels > self.max_pixels:
            raise InputError(
                f"image_min_pixels ({self.min_pixels}) must not be larger than image_max_pixels ({self.max_pixels})."
            )

    def steps(self, size: Size, further: Sequence[Bound] = ()) -> Iterator[Size]:
        """The sizes an image is resized to, one after another; none where it lies within the bounds.

        `further` are bounds of the family's own image processor.
        """
        for wrong, bound in (
            (lambda s: s[0] * s[1] > self.max_pixels, lambda s: _scaled(s, self.max_pixels)),
            (lambda s: s[0] * s[1] < self.min_pixels, lambda s: _scaled(s, self.min_pixels)),
            *further,
        ):
            if wrong(size):
                size = bound(size)
                yield size


def _scaled(size: Size, pixels: int) -> Size:
    factor = math.sqrt(pixels / (size[0] * size[1]))
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


class ImageInputs:
    """Images for one checkpoint."""

    def __init__(self, processor: Any, config: Any, bounds: Bounds) -> None:
        self._processor = processor
        self._image_processor = processor.image_processor
        self._config = config
        self._bounds = bounds
        family = SUPPORTED_FAMILIES[config.model_type]
        self._support = require(family, "training", family.training)
        tiles = self._support.tiles
        self._tiles: Mapping[str, Any] = tiles if bounds.crop_to_patches and not isinstance(tiles, Lacks) else {}
        self._known: dict[Size, int] = {}

    def open(self, conversation: Conversation, root: Path) -> list[Image.Image]:
        """The row's images below `root`, RGB, within the bounds."""
        opened = []
        for number, name in enumerate(conversation.images):
            where = conversation.image_where(number)
            path = resolve_below(root, name, where)
            opened.append(self._bounded(decode_image(read_image(path, where), f"{where}: the image {path}")))
        return opened

    def _bounded(self, image: Image.Image) -> Image.Image:
        for size in self._bounds.steps(image.size, self._support.further_bounds):
            image = image.resize(size)
        return image.convert("RGB")

    def tokens(self, size: Size) -> int:
        """Image tokens of an image of this size in pixels, before it is brought within the bounds."""
        *_, last = size, *self._bounds.steps(size, self._support.further_bounds)
        return self.tokens_within(last)

    def tokens_within(self, size: Size) -> int:
        """Image tokens of an image that lies within the bounds."""
        if size not in self._known:
            self._known[size] = self._support.count_tokens(
                self._processor, self._config, lambda: self._made([Image.new("RGB", size)]), size
            )
        return self._known[size]

    def _made(self, images: Sequence[Image.Image]) -> Mapping[str, Any]:
        made: Mapping[str, Any] = self._image_processor(images=list(images), return_tensors="pt", **self._tiles)
        return made

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """The model's pixel inputs for the images of a batch, in order."""
        return {name: value for name, value in self._made(images).items() if name in self._support.pixel_inputs}


# --- rows -----------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A row: its ids and labels, its images within the bounds."""

    encoded: Encoded
    images: list[Image.Image]


@dataclass(frozen=True)
class Examples(torch.utils.data.Dataset[Example]):
    """The rows of a recipe's data sets, in the files' order."""

    conversations: Sequence[Conversation]
    encoder: Encoder
    inputs: ImageInputs
    root: Path  # the recipe's media_dir

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, number: int) -> Example:
        conversation = self.conversations[number]
        images = self.inputs.open(conversation, self.root)
        tokens = [self.inputs.tokens_within(image.size) for image in images]
        return Example(self.encoder.encode(conversation, tokens), images)


@dataclass(frozen=True)
class Collator:
    """Makes the model's inputs from examples; a batch without images has no pixels."""

    inputs: ImageInputs
    pad: int  # token id
    image_token: int
    dtype: torch.dtype  # of the pixels
    marks_images: bool  # whether the model wants mm_token_type_ids (Qwen from transformers 5 on)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        longest = max(len(example.encoded.ids) for example in examples)
        length = -(-longest // PAD_TO) * PAD_TO
        batch = {
            "input_ids": _padded([e.encoded.ids for e in examples], self.pad, length),
            "attention_mask": _padded([[1] * len(e.encoded.ids) for e in examples], 0, length),
            "labels": _padded([e.encoded.labels for e in examples], IGNORED, length),
        }  # [B, length] each
        if self.marks_images:
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_token).long()
        images = [image for example in examples for image in example.images]
        if images:
            pixels = self.inputs.pixels(images)
            batch |= {
                name: value.to(self.dtype) if value.is_floating_point() else value for name, value in pixels.items()
            }
        return batch


def wants_image_marks(model: Any) -> bool:
    """Whether the model's forward takes mm_token_type_ids."""
    return "mm_token_type_ids" in inspect.signature(type(model).forward).parameters


def _padded(rows: Sequence[Sequence[int]], filler: int, length: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
