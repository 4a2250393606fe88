"""Families whose image becomes a grid of codes of a vector-quantised autoencoder, each a word of the vocabulary."""

from collections.abc import Sequence
from typing import Any

from transformers_agci.families.declaration import BY_TRANSFORMERS, Family, ForwardCall, ImageTokens
from transformers_agci.families.image_tokens import encoded_lengths, in_rows, pairs
from transformers_agci.families.reasons import NO_LAYOUT, UNKNOWN_TO_VLLM


def _by_codes(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Emu3: an end of line stands behind each row: h * (w + 1)."""
    if call.encoded is not None or call.image_sizes is None:
        return encoded_lengths(call)
    code = 2 ** (len(config.vq_config.channel_multiplier) - 1)  # pixels
    return [(height // code) * (width // code + 1) for height, width in pairs(call.image_sizes)]


def _by_codes_alone(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Apertus 1.5: what ends a row is no image token: h * w."""
    if call.encoded is not None or call.image_sizes is None:
        return encoded_lengths(call)
    code = 2 ** (len(config.vision_config.channel_multiplier) - 1)  # pixels
    return [(height // code) * (width // code) for height, width in pairs(call.image_sizes)]


FAMILIES = (
    Family(
        "emu3",
        "Emu3",
        "Emu3-community/Emu3-Chat-hf",
        "7938 of 720x720 pixels",
        ImageTokens(_by_codes),
        NO_LAYOUT,
        alone=True,  # images of one call are padded to one size, and its codes see the padding
        vllm=BY_TRANSFORMERS,
    ),
    Family(
        "apertus1p5",
        "Apertus 1.5",
        "swiss-ai/Apertus-v1.5-8B",
        "2704",
        ImageTokens(_by_codes_alone, rows=in_rows),
        NO_LAYOUT,
        vllm=UNKNOWN_TO_VLLM,
    ),
)
