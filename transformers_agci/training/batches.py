"""Rows of a data set as batches: encoded when they are needed, padded on the right."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from transformers_agci.data.sharegpt import Conversation
from transformers_agci.training.encoding import IGNORED, Encoded, Encoder
from transformers_agci.training.images import ImageInputs

PAD_TO = 8  # a batch's length is a multiple of this, which GPUs like


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
