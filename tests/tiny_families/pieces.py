"""What the processor of each family makes of one image: token ids with the marks around it, and pixel inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tiny_families.batches import IMG, Piece, concatenated, per_sample, random
from tiny_families.configs import TILE

GRID_SIZES = {"plain": (4, 4), "tiled": (4, 6)}  # patches


def grid_piece(
    form: str, generator: torch.Generator, *, values: int, merged: int = 4, marks: tuple[int, int] = (3, 4)
) -> Piece:
    """`values` numbers per patch, `merged` patches per token, a mark before and behind."""
    height, width = GRID_SIZES[form]
    ids = [marks[0], *[IMG] * (height * width // merged), marks[1]]
    grid = torch.tensor([[1, height, width]])
    return Piece(ids, {"pixel_values": random(generator, height * width, values), "image_grid_thw": grid})


QWEN_PATCH = partial(grid_piece, values=3 * 2 * 4 * 4)


def square_piece(form: str, generator: torch.Generator, *, tokens: int, size: int = TILE, more: Any = None) -> Piece:
    """One image of `tokens` tokens without any mark: two of them touch."""
    pixels = {"pixel_values": random(generator, 1, 3, size, size)}
    return Piece([IMG] * tokens, pixels | (more(generator) if more else {}))


def tiles_of(form: str, generator: torch.Generator, size: int = TILE) -> torch.Tensor:
    return random(generator, 3 if form == "tiled" else 1, 3, size, size)


def aya_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [5, *run, 6, *run] if form == "tiled" else []
    return Piece([3, *tiles, 7, *run, 4], {"pixel_values": tiles_of(form, generator)})


def cohere_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    pixels = tiles_of(form, generator)
    return Piece([3, *([IMG] * tokens + [5]) * len(pixels), 4], {"pixel_values": pixels})


def llama_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [*run, 5, *run, 6] if form == "tiled" else []
    return Piece([3, *tiles, 7, *run, 4], {"pixel_values": tiles_of(form, generator)})


def ovis_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [*run, 6, *run] if form == "tiled" else []
    return Piece([3, *run, 5, *tiles, 4], {"pixel_values": tiles_of(form, generator)})


def idefics_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [3, 5, *run, 3, 6, *run, 8, 8] if form == "tiled" else []
    return Piece([*tiles, 3, 7, *run, 3], {"pixel_values": tiles_of(form, generator)})


def lfm_piece(form: str, generator: torch.Generator) -> Piece:
    """Tiles of 4 x 4 patches, a thumbnail of 2 x 4; an image without tiles is one of 2 x 4."""
    shapes = [(4, 4), (4, 4), (2, 4)] if form == "tiled" else [(2, 4)]
    run = [IMG] * 4
    tiles = [5, *run, 6, *run, 7] if form == "tiled" else []
    mask = torch.tensor([[int(i < h * w) for i in range(16)] for h, w in shapes])
    pixels = {
        "pixel_values": random(generator, len(shapes), 16, 3 * 4 * 4),
        "spatial_shapes": torch.tensor(shapes),
        "pixel_attention_mask": mask,
    }
    return Piece([3, *tiles, IMG, IMG, 4], pixels)


def perception_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    """All images of a call have as many tiles: the processor stacks them, and nothing marks where one ends."""
    return Piece([IMG] * (2 * tokens), {"pixel_values": random(generator, 1, 2, 3, TILE, TILE)})


def run_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    """Tiles in one run, marks around it: GOT-OCR2, Aria."""
    pixels = tiles_of(form, generator)
    return Piece([3, *[IMG] * (tokens * len(pixels)), 4], {"pixel_values": pixels})


def pixtral_piece(form: str, generator: torch.Generator, merge: int = 1, breaks: bool = True) -> Piece:
    """Rows of tokens, a break behind each and an end behind the last."""
    rows, columns = (2, 3) if form == "tiled" else (2, 2)
    row = [IMG] * columns
    ids = [*row, 5] * (rows - 1) + [*row, 6] if breaks else row * rows
    height, width = rows * 4 * merge, columns * 4 * merge
    return Piece(
        ids, {"pixel_values": random(generator, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    )


def docling_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    ids = [3, 5, *run, 3, 6, *run, 8, 8, 3, 7, *run, 3] if form == "tiled" else [3, 5, *run, 8]
    return Piece(ids, {"pixel_values": tiles_of(form, generator)})


def docling_collate(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    inputs = per_sample(rows)
    if inputs:
        inputs["pixel_attention_mask"] = (inputs["pixel_values"] != 0).flatten(2).any(dim=-1)
    return inputs


def molmo_piece(form: str, generator: torch.Generator) -> Piece:
    """The whole as 2 x 2 tokens, then the crops put together as rows of tokens with a column token behind each."""
    rows, columns = (2, 3) if form == "tiled" else (1, 2)
    low, high = [IMG, IMG, 6], [*[IMG] * columns, 6]
    ids = [3, *low * 2, 5, 4, *high * rows, 5]
    tokens = 4 + rows * columns
    pooling = torch.arange(tokens * 2).view(tokens, 2) % 32
    pixels = {
        "pixel_values": random(generator, 2, 16, 3 * 4 * 4),  # two crops of 4 x 4 patches
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([[2, 2, rows, columns]]),
        "image_num_crops": torch.tensor([2]),
    }
    return Piece(ids, pixels)


def molmo_collate(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """The pooling's numbers count the patches of all crops of the call."""
    pieces = [piece for row in rows for piece in row]
    moved = [
        Piece(piece.ids, {**piece.pixels, "image_token_pooling": piece.pixels["image_token_pooling"] + 32 * number})
        for number, piece in enumerate(pieces)
    ]
    return concatenated([moved])


def anyres_piece(form: str, generator: torch.Generator) -> Piece:
    """LLaVA-NeXT and its kin: tiles of 16 pixels and 4 x 4 tokens; 16 x 32 pixels make two tiles, 16 x 16 one."""
    columns = 2 if form == "tiled" else 1
    tokens = 16 + 4 * (4 * columns + 1)
    pixels = {
        "pixel_values": random(generator, 1, 1 + columns, 3, TILE, TILE),
        "image_sizes": torch.tensor([[TILE, TILE * columns]]),
    }
    return Piece([IMG] * tokens, pixels)


def onevision_piece(form: str, generator: torch.Generator, alone: bool) -> Piece:
    """An image among others in its prompt has no tiles: whole image and newline."""
    if alone:
        return anyres_piece(form, generator)
    pixels = {
        "pixel_values": random(generator, 1, 1, 3, TILE, TILE),
        "image_sizes": torch.tensor([[TILE, TILE]]),
    }
    return Piece([IMG] * 17, pixels)


PINPOINTS = [[TILE, TILE], [TILE, 2 * TILE], [2 * TILE, TILE]]


def gemma4_piece(form: str, generator: torch.Generator) -> Piece:
    """Squares of 2 x 2 patches are pooled; 24 places for patches, those that are not used are at (-1, -1)."""
    rows, columns = (4, 6) if form == "tiled" else (4, 4)
    positions = torch.full((1, 24, 2), -1)
    places = [(column, row) for row in range(rows) for column in range(columns)]
    positions[0, : rows * columns] = torch.tensor(places)
    ids = [3, *[IMG] * (rows * columns // 4), 4]
    return Piece(ids, {"pixel_values": random(generator, 1, 24, 3 * 4 * 4), "image_position_ids": positions})


def hunyuan_piece(form: str, generator: torch.Generator) -> Piece:
    height, width = GRID_SIZES[form]
    ids = [3, *[IMG] * (height // 2 * (width // 2 + 1) + 2), 4]
    grid = torch.tensor([[1, height, width]])
    return Piece(ids, {"pixel_values": random(generator, height * width, 3 * 4 * 4), "image_grid_thw": grid})


def hy4_piece(form: str, generator: torch.Generator) -> Piece:
    """A newline token, of the image's own, behind each row of merged patches."""
    height, width = GRID_SIZES[form]
    ids = [3, *[IMG] * (height // 2 * (width // 2 + 1)), 4]
    grid = torch.tensor([[1, height, width]])
    return Piece(ids, {"pixel_values": random(generator, height * width, 3 * 4 * 4), "image_grid_thw": grid})


def conv_piece(form: str, generator: torch.Generator) -> Piece:
    piece = grid_piece(form, generator, values=3 * 4 * 4)
    return Piece(piece.ids, {**piece.pixels, "pixel_values": piece.pixels["pixel_values"].view(-1, 3, 4, 4)})


def merge_size_piece(form: str, generator: torch.Generator) -> Piece:
    """VideoLLaMA 3: the call says how many patches are merged, image by image; nothing marks an image."""
    height, width = GRID_SIZES[form]
    merge = 1 if form == "tiled" else 2
    pixels = {
        "pixel_values": random(generator, height * width, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, height, width]]),
        "image_merge_sizes": torch.tensor([merge]),
    }
    return Piece([IMG] * (height * width // merge**2), pixels)


def token_grid_piece(form: str, generator: torch.Generator) -> Piece:
    """Inkling 2: the grid counts tokens, of 2 x 2 patches each."""
    height, width = (2, 3) if form == "tiled" else (2, 2)
    grid = torch.tensor([[1, height, width]])
    pixels = {"pixel_values": random(generator, height * width, 8, 8, 3), "image_grid_thw": grid}
    return Piece([3, *[IMG] * (height * width), 4], pixels)


def ocr_piece(form: str, generator: torch.Generator) -> Piece:
    """GOT-OCR2's tower halves 64 / 4 patches twice: 4 x 4 tokens per tile."""
    pixels = tiles_of(form, generator, 64)
    return Piece([3, *[IMG] * (16 * len(pixels)), 4], {"pixel_values": pixels})


def pooled_piece(form: str, generator: torch.Generator) -> Piece:
    """Gemma 4 Unified: 8 places for patches that are tokens; those that are not used are at (-1, -1)."""
    rows, columns = (2, 3) if form == "tiled" else (2, 2)
    positions = torch.full((1, 8, 2), -1)
    positions[0, : rows * columns] = torch.tensor([(column, row) for row in range(rows) for column in range(columns)])
    pixels = {"pixel_values": random(generator, 1, 8, 3 * 8 * 8), "image_position_ids": positions}
    return Piece([3, *[IMG] * (rows * columns), 4], pixels)


def views_piece(form: str, generator: torch.Generator, image: Callable[[int], list[int]], size: int = 32) -> Piece:
    """A whole image, and where it is tiled two crops side by side; `image` says its tokens."""
    crops = 2 if form == "tiled" else 0
    pixels = {
        "pixel_values": random(generator, 1, 3, size, size),
        "pixel_values_local": random(generator, crops, 3, size // 2, size // 2),
        "num_local_patches": torch.tensor([crops]),
        "patches_grid": torch.tensor([[crops, 1]]),
    }
    return Piece(image(crops), pixels)


def views(rows: list[list[Piece]], grid: bool = False) -> dict[str, Any]:
    """The crops' numbers are lists, as the processors leave them; no crops at all are None."""
    inputs: dict[str, Any] = concatenated(rows)
    if not inputs:
        return {}
    inputs["num_local_patches"] = inputs["num_local_patches"].tolist()
    grids = inputs.pop("patches_grid").tolist()
    if grid:
        inputs["patches_grid"] = grids
    if not len(inputs["pixel_values_local"]):
        del inputs["pixel_values_local"]
    return inputs


def step_tokens(crops: int) -> list[int]:
    """Crops of 2 x 2 tokens, a whole of 4 x 4 or fewer, marks around each, a newline behind a row of crops."""
    return [*[5, *[IMG] * 4, 6] * crops, *[7] * (crops > 0), 3, *[IMG] * 16, 4]


def minicpm_piece(form: str, generator: torch.Generator, merged: int = 16) -> Piece:
    """The whole as 4 x 4 patches, and where it is tiled three slices in two rows, one of them larger."""
    sizes = [(4, 4), *([(4, 4), (4, 8), (4, 4)] if form == "tiled" else [])]
    runs = [[IMG] * (height * width // merged) for height, width in sizes]
    slices = [5, *runs[1], 6, 5, *runs[2], 6, 7, 5, *runs[3], 6] if form == "tiled" else []
    patches = sum(height * width for height, width in sizes)
    pixels = {"pixel_values": random(generator, patches, 3, 4, 4), "target_sizes": torch.tensor(sizes)}
    return Piece([3, *runs[0], 4, *slices], pixels)


def packed(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """MiniCPM: the patches of all units side by side in one strip [1, 3, patch, patches * patch]."""
    inputs = concatenated(rows)
    if inputs:
        inputs["pixel_values"] = inputs["pixel_values"].permute(1, 2, 0, 3).reshape(1, 3, 4, -1)
    return inputs


def inkling_piece(form: str, generator: torch.Generator) -> Piece:
    """A patch is a token, and nothing in the call but the mark before an image says where it begins."""
    tokens = 6 if form == "tiled" else 4
    return Piece([3, *[IMG] * tokens], {"pixel_values": random(generator, tokens, 2, 8, 8, 3)})


def nemotron_piece(form: str, generator: torch.Generator) -> Piece:
    piece = grid_piece(form, generator, values=3 * 4 * 4)
    return Piece(
        piece.ids, {"pixel_values": piece.pixels["pixel_values"], "image_grid_hw": torch.tensor([GRID_SIZES[form]])}
    )


def emu_piece(form: str, generator: torch.Generator) -> Piece:
    """Codes of 2 x 2 pixels, an end of line behind each row."""
    height, width = (4, 6) if form == "tiled" else (4, 4)
    ids = [3, *[IMG] * (height // 2 * (width // 2 + 1)), 4]
    pixels = {"pixel_values": random(generator, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    return Piece(ids, pixels)


def apertus_piece(form: str, generator: torch.Generator) -> Piece:
    """Codes of 2 x 2 pixels; the size in words and a mark before them, an end of line between rows, which is text."""
    height, width = (4, 6) if form == "tiled" else (4, 4)
    row = [IMG] * (width // 2)
    ids = [3, 40 + height // 2, 9, 40 + width // 2, 10, *[*row, 5] * (height // 2 - 1), *row, 4]
    pixels = {"pixel_values": random(generator, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    return Piece(ids, pixels)


def fuyu_piece(form: str, generator: torch.Generator) -> Piece:
    """2 x 3 patches, a newline behind each row; all images of a call have as many."""
    return Piece([*[IMG] * 3, 5, *[IMG] * 3, 5], {"pixel_values": random(generator, 1, 6, 3 * 4 * 4)})
