"""Tiny models of the kin of families/codes.py."""

from tiny_families.batches import AUDIO, IMG, WIDTH, padded_pixels
from tiny_families.configs import VQ, config, row, text
from tiny_families.pieces import apertus_piece, emu_piece

# Since transformers 5.24.
NEWEST = (
    row(
        "apertus1p5",
        "Apertus1p5",
        config(
            "Apertus1p5Config",
            text_config=text(),
            vision_config={**VQ, "codebook_size": 16, "attn_resolutions": []},
            audio_config={
                "model_type": "wavtokenizer_encoder",
                "num_filters": 4,
                "hidden_size": 32,
                "codebook_dim": 32,
                "codebook_size": 8,
                "num_lstm_layers": 1,
            },
            image_token_id=IMG,
            audio_token_id=AUDIO,
            image_token_offset=160,
            audio_token_offset=176,
        ),
        apertus_piece,
        padded_pixels,
    ),
)

ROWS = (
    *NEWEST,
    row(
        "emu3",
        "Emu3",
        config(
            "Emu3Config",
            text_config=text(),
            vq_config={
                **VQ,
                "codebook_size": 16,
                "hidden_size": WIDTH,
                "attn_resolutions": [],
                "temporal_downsample_factor": 1,
            },
            vocabulary_map={
                "<image>": IMG,
                "<|extra_200|>": 8,
                **{f"<|visual token {number:06}|>": 160 + number for number in range(16)},
            },
        ),
        emu_piece,
        padded_pixels,
    ),
)
