"""What a tiny family is, what an image adds to a prompt, and how pixel inputs are put together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers

from transformers_agci.families import decoder_of, find_vlm

PAD, BOS, EOS, IMG, VIDEO, AUDIO = 0, 1, 2, 30, 31, 32


VOCABULARY = 200


TEXT = "text"  # an item of a prompt: a few text tokens


WIDTH = 32


@dataclass(frozen=True)
class Piece:
    """One image in a prompt: ids, and pixel inputs whose first dimension is images, tiles or patches."""

    ids: list[int]
    pixels: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, torch.Tensor]
    images: list[tuple[int, list[int]]]  # (row, positions of its tokens), in order


@dataclass(frozen=True)
class TinyFamily:
    """A family to test.

    config    config class name, and its arguments
    model     model class name
    piece     (form, generator) -> one image; form is "plain" or "tiled" (of several tiles, or larger)
    collate   rows of pieces -> pixel inputs
    extra     inputs -> further inputs that the model needs
    lora      layers of the decoder for an adapter
    notes     test -> why stock itself cannot do it
    """

    model_type: str
    model: str
    config: Callable[[], Any]
    piece: Callable[..., Piece]
    collate: Callable[[list[list[Piece]]], dict[str, torch.Tensor]]
    image_token: int = IMG
    lora: str = "q_proj|v_proj"
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        named = self.config.args[0] if isinstance(self.config, partial) else self.model
        return hasattr(transformers, self.model) and hasattr(transformers, named)

    def build(self, seed: int = 0) -> Any:
        """The model, in eval mode, float32."""
        torch.manual_seed(seed)
        config = self.config()
        config._attn_implementation = "eager"
        model = getattr(transformers, self.model)(config).eval()
        vlm = find_vlm(model)
        of_decoder = {id(weight) for weight in decoder_of(vlm).parameters()}
        for weight in vlm.parameters():  # as initialized, some towers give features that are nearly equal, or zero
            if weight.ndim > 1 and id(weight) not in of_decoder:
                torch.nn.init.normal_(weight, std=0.2)
        return model


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def concatenated(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """All pixel inputs along their first dimension."""
    pieces = [piece for row in rows for piece in row]
    return {name: torch.cat([piece.pixels[name] for piece in pieces]) for name in pieces[0].pixels} if pieces else {}


def padded_pixels(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """As `concatenated`, images of different size padded on the right and below."""
    pieces = [piece for row in rows for piece in row]
    if not pieces:
        return {}
    height, width = (max(piece.pixels["pixel_values"].shape[side] for piece in pieces) for side in (-2, -1))
    grown = []
    for piece in pieces:
        pixels = piece.pixels["pixel_values"]
        more = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
        grown.append(Piece(piece.ids, {**piece.pixels, "pixel_values": torch.nn.functional.pad(pixels, more)}))
    return concatenated([grown])


def per_sample(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """pixel_values [B, most tiles of a row, ...]; what a row lacks is zero, as Idefics3's processor pads it."""
    if not any(rows):
        return {}
    tiles = [torch.cat([piece.pixels["pixel_values"] for piece in row]) if row else None for row in rows]
    shape = next(tile.shape[1:] for tile in tiles if tile is not None)
    most = max(0 if tile is None else len(tile) for tile in tiles)
    values = torch.zeros(len(rows), most, *shape)
    for row, tile in enumerate(tiles):
        if tile is not None:
            values[row, : len(tile)] = tile
    return {"pixel_values": values}


def per_image(rows: list[list[Piece]], count: bool = False) -> dict[str, torch.Tensor]:
    """pixel_values [images, most tiles, ...], padded with zeros; LLaVA-OneVision also counts images per prompt."""
    pieces = [piece for row in rows for piece in row]
    if not pieces:
        return {}
    most = max(piece.pixels["pixel_values"].shape[1] for piece in pieces)
    grown = [
        Piece(
            piece.ids,
            {
                **piece.pixels,
                "pixel_values": torch.nn.functional.pad(
                    piece.pixels["pixel_values"], (0,) * 7 + (most - piece.pixels["pixel_values"].shape[1],)
                ),
            },
        )
        for piece in pieces
    ]
    inputs = concatenated([grown])
    return inputs | {"batch_num_images": torch.tensor([len(row) for row in rows if row])} if count else inputs
