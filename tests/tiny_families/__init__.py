"""Every supported family beyond the paper's six as a tiny random model of transformers' own classes.

One builder per family says the model's config and what the processor makes of one image: token ids with the marks
that the real processor writes, and pixel inputs. Batches are put together from these pieces, so that the truth about
which tokens belong to which image comes from how the prompt was made.

    family = TINY["aya_vision"]
    model = family.build()
    batch = make_batch(family, [[TEXT, "tiled", "plain"], [TEXT]])
    batch.inputs, batch.images          # images: (row, [positions]) in order
"""

import torch
import transformers

from tiny_families import codes, deepseek, gemma, grids, grids_otherwise, internvl, llava, minicpm, qwen, tiles
from tiny_families.batches import BOS, EOS, IMG, PAD, TEXT, VOCABULARY, WIDTH, Batch, Piece, TinyFamily, concatenated
from tiny_families.configs import TILE
from tiny_families.pieces import onevision_piece
from tiny_families.prompts import make_batch, type_ids

__all__ = [
    "BLIND",
    "BOS",
    "BROKEN",
    "EOS",
    "IMG",
    "PAD",
    "ROWS",
    "TEXT",
    "TILE",
    "TINY",
    "VOCABULARY",
    "WIDTH",
    "Batch",
    "Piece",
    "TinyFamily",
    "concatenated",
    "make_batch",
    "onevision_piece",
    "type_ids",
    "wide_image",
]

_KIN = (qwen, gemma, internvl, llava, grids, grids_otherwise, codes, tiles, deepseek, minicpm)

ROWS = {row.model_type: row for kin in _KIN for row in kin.ROWS}
# What fails there in any call, without AGCI: why. `test_stock_fails_by_itself` says when it no longer does.
BROKEN = {}
if transformers.__version__.startswith("5.24."):
    BROKEN["llama4"] = "its forward asks the decoder's output for image_outputs, which that has not"
# Whose images do not come in before 5.18: Emu3's forward drops the pixels on the way to its own inner model, Fuyu's
# takes them under another name.
BLIND = {"emu3", "fuyu"} if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18) else set()
TINY = {name: row for name, row in ROWS.items() if row.available and name not in BROKEN}  # in this transformers


def wide_image() -> tuple[dict[str, torch.Tensor], list[int]]:
    """Inputs of the tiny Qwen2-VL with one image of 3 x 4 tokens, and where they stand."""
    batch = make_batch(TINY["qwen2_vl"], [[TEXT, "plain", TEXT]])
    ids = batch.inputs["input_ids"][0].tolist()
    first = ids.index(IMG)
    ids[first : first + 4] = [IMG] * 12
    values = batch.inputs["pixel_values"].shape[1]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(48, values, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 6, 8]]),
    }
    if "mm_token_type_ids" in batch.inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMG).long()
    return inputs, list(range(first, first + 12))
