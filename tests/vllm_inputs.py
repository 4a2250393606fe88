"""What each family under vLLM is given for its images, made of the pieces of its tiny model."""

from typing import Any

import torch
from tiny_families import IMG, TILE, Piece, concatenated

from transformers_agci.vllm.injection import IMAGE_MARK

Inputs = dict[str, Any]


def whole(pieces: list[Piece]) -> Inputs:
    return dict(concatenated([pieces]))


def one_by_one(pieces: list[Piece]) -> Inputs:
    """Images of different size, or number of tiles, in a list."""
    given: Inputs = {"pixel_values": [piece.pixels["pixel_values"][0] for piece in pieces]}
    sizes = [piece.pixels["image_sizes"] for piece in pieces]
    return {**given, "image_sizes": torch.cat(sizes)}


def with_counts(pieces: list[Piece]) -> Inputs:
    return {**whole(pieces), "num_patches": torch.tensor([len(piece.pixels["pixel_values"]) for piece in pieces])}


def with_masks(pieces: list[Piece]) -> Inputs:
    given = with_counts(pieces)
    mask = torch.ones(len(given["pixel_values"]), TILE, TILE, dtype=torch.bool)
    return {**given, "pixel_attention_mask": mask}


def llama(pieces: list[Piece]) -> Inputs:
    counts = with_counts(pieces).pop("num_patches")
    ratios = torch.ones(len(pieces), 2, dtype=torch.long)
    return {**whole(pieces), "patches_per_image": counts, "aspect_ratios": ratios}


def lfm(pieces: list[Piece]) -> Inputs:
    return {name: value for name, value in with_counts(pieces).items() if name != "pixel_attention_mask"}


def paddle(pieces: list[Piece]) -> Inputs:
    return {**whole(pieces), "pixel_values": [piece.pixels["pixel_values"] for piece in pieces]}


def gemma4(pieces: list[Piece]) -> Inputs:
    given = whole(pieces)
    return {**given, "pixel_position_ids": given.pop("image_position_ids")}


def flat(pieces: list[Piece]) -> Inputs:
    given = with_counts(pieces)
    named = {"pixel_values_flat": given["pixel_values"], "image_num_patches": given["num_patches"]}
    return {**named, "image_token_id": torch.tensor(IMG)}


def minicpm(pieces: list[Piece]) -> Inputs:
    """The strip of each slice: [3, patch, patches * patch]."""
    sizes = [piece.pixels["target_sizes"] for piece in pieces]
    patches = [
        piece.pixels["pixel_values"].split(size.prod(-1).tolist()) for piece, size in zip(pieces, sizes, strict=True)
    ]
    strips = [[each.permute(1, 2, 0, 3).flatten(2) for each in of_image] for of_image in patches]
    return {"pixel_values": strips, "tgt_sizes": sizes}


def marked(pieces: list[Piece]) -> Inputs:
    """With the note that all are images (vllm/marks.py)."""
    given = whole(pieces)
    return {**given, "grid_thws": given.pop("image_grid_thw"), IMAGE_MARK: torch.ones(len(pieces), dtype=torch.bool)}


def row_by_row(pieces: list[Piece]) -> Inputs:
    """Patches in rows, where transformers takes those that are merged, 2 x 2, one after the other."""
    values = []
    for piece in pieces:
        ((_, height, width),) = piece.pixels["image_grid_thw"].tolist()
        blocks = piece.pixels["pixel_values"].view(height // 2, width // 2, 2, 2, -1)
        values.append(blocks.transpose(1, 2).reshape(height * width, -1))
    return {**whole(pieces), "pixel_values": torch.cat(values)}


def by_transformers(pieces: list[Piece]) -> Inputs:
    """With the rows of `pixel_values` that are of each image."""
    given = whole(pieces)
    return {**given, "num_image_patches": torch.tensor([len(piece.pixels["pixel_values"]) for piece in pieces])}


def emu3(pieces: list[Piece]) -> Inputs:
    return {**one_by_one(pieces), "num_image_patches": torch.ones(len(pieces), dtype=torch.long)}
