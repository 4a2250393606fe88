"""Prompts put together from pieces, so that what they show is known."""

import inspect
from collections.abc import Sequence

import torch
import transformers

from tiny_families.batches import BOS, PAD, TEXT, VOCABULARY, Batch, Piece, TinyFamily
from tiny_families.pieces import onevision_piece


def make_batch(
    family: TinyFamily, rows: Sequence[Sequence[str]], side: str = "left", seed: int = 0, alike: bool = False
) -> Batch:
    """A batch of prompts; a row is a sequence of TEXT, "plain" and "tiled". Padded on `side`.

    `alike`: every row has the tokens and images that it would have as the first one.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces: list[list[Piece]] = []
    ids: list[list[int]] = []
    places: list[list[list[int]]] = []
    for row in rows:
        if alike:
            generator.manual_seed(seed)
        tokens: list[int] = [BOS]
        pieces.append([])
        places.append([])
        for item in row:
            if item == TEXT:
                tokens += torch.randint(40, VOCABULARY, (5,), generator=generator).tolist()
                continue
            alone = {"alone": sum(other != TEXT for other in row) == 1} if family.piece is onevision_piece else {}
            piece = family.piece(item, generator, **alone)
            places[-1].append([len(tokens) + i for i, t in enumerate(piece.ids) if t == family.image_token])
            tokens += piece.ids
            pieces[-1].append(piece)
        ids.append(tokens)
    longest = max(map(len, ids))
    left = side == "left"
    input_ids = torch.full((len(ids), longest), PAD)
    mask = torch.zeros_like(input_ids)
    images = []
    for row, tokens in enumerate(ids):
        start = longest - len(tokens) if left else 0
        input_ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
        images += [(row, [start + place for place in image]) for image in places[row]]
    inputs = {"input_ids": input_ids, "attention_mask": mask, **family.collate(pieces)}
    names = inspect.signature(getattr(transformers, family.model).forward).parameters
    if "pixel_values_images" in names and "pixel_values" not in names:  # Video-LLaVA in older versions
        inputs["pixel_values_images"] = inputs.pop("pixel_values")
    return Batch(inputs | type_ids(family, input_ids), images)


def type_ids(family: TinyFamily, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens are image tokens, under the name that the model's forward takes."""
    names = inspect.signature(getattr(transformers, family.model).forward).parameters
    marked = (ids == family.image_token).long()
    found = {"mm_token_type_ids": marked} if "mm_token_type_ids" in names else {}
    if "moe_mm_token_type_ids" in names:
        found["moe_mm_token_type_ids"] = marked
    if "token_type_ids" in names and family.model_type == "gemma3":
        found["token_type_ids"] = marked
    return found
