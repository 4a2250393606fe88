"""Tiny models of the kin of families/minicpm.py."""

from tiny_families.batches import IMG, VIDEO
from tiny_families.configs import CLIP_SIZES, QWEN3_5, config, row
from tiny_families.pieces import minicpm_piece, packed

ROWS = (
    *(
        row(
            model_type,
            name,
            config(
                f"{name}Config",
                text_config=QWEN3_5,
                vision_config={**CLIP_SIZES, "image_size": 32},
                insert_layer_id=0,
                downsample_mode="16x",
                image_token_id=IMG,
                video_token_id=VIDEO,
                tie_word_embeddings=False,
                **more,
            ),
            minicpm_piece,
            packed,
        )
        for model_type, name, more in (
            ("minicpmv4_6", "MiniCPMV4_6", {}),
            (
                "minicpmv4_7",
                "MiniCPMV4_7",
                {"image_start_id": 3, "image_end_id": 4, "slice_start_id": 5, "slice_end_id": 6, "newline_id": 7},
            ),
            ("minicpm_ocr", "MiniCPMOcr", {}),
        )
    ),
)
