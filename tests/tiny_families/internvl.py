"""Tiny models of the kin of families/internvl.py."""

from functools import partial

from tiny_families.batches import IMG
from tiny_families.configs import CLIP_SIZES, TILE, config, row, text
from tiny_families.pieces import run_piece

ROWS = (
    row(
        "qianfan_ocr",
        "QianfanOCR",
        config(
            "QianfanOCRConfig",
            text_config=text(model_type="qwen3"),
            vision_config={**CLIP_SIZES, "image_size": [TILE, TILE], "patch_size": [4, 4]},
            image_seq_length=4,
            image_token_id=IMG,
        ),
        partial(run_piece, tokens=4),
    ),
)
