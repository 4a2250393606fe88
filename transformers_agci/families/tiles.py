"""Families that cut an image into tiles with separators between them: one image is several runs of image tokens."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers_agci.families.declaration import BY_TRANSFORMERS, Family, ForwardCall, ImageTokens, Lacks, VllmClass
from transformers_agci.families.image_tokens import (
    EQUAL,
    between_fakes,
    between_marks,
    encoded_lengths,
    equal_shares,
    framed_by,
    line_breaks,
    pairs,
    per_tile,
    squares_until_mark_returns,
    tile_marks_at_start,
    until_end_mark,
    until_mark_returns,
    visual_indicators,
)
from transformers_agci.families.reasons import LINEAR_ATTENTION, NO_CHAT, NO_LAYOUT, UNCOUNTED, UNKNOWN_TO_VLLM
from transformers_agci.families.special_tokens import token_ids


def _lfm_tiles(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """LFM2-VL: spatial_shapes [tiles, 2] says each tile's patches, squares of which are merged into a token."""
    shapes = call.arguments.get("spatial_shapes")
    if shapes is None or call.encoded is not None:
        return encoded_lengths(call)
    factor = config.downsample_factor
    return [(height // factor) * (width // factor) for height, width in pairs(shapes)]


def _tiles_of_images(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Perception LM: pixel_values [images, tiles, channels, height, width]; no marks, so adjacent images touch."""
    images = len(call.pixel_values) if call.encoded is None else _encoded_images(call.encoded)
    return [total // images] * images


def _encoded_images(encoded: Any) -> int:
    units = getattr(encoded, "_agci_units_per_image", None)
    if units is None:
        raise ValueError("Perception LM's images were encoded before AGCI was attached and cannot be told apart.")
    return len(encoded.pooler_output) // int(units)


def _begins_a_row(config: Any) -> list[int]:
    text = config.get_text_config()
    return [number for number in (text.bos_token_id, text.pad_token_id) if isinstance(number, int)]


def _llama_marks(config: Any) -> Sequence[int]:
    """The marks before and behind an image, from the checkpoint's tokenizer or config; those beyond the vocabulary
    are nobody's."""
    known = token_ids(config, ("<|image_start|>", "<|image_end|>"))
    if known:
        return known
    marks = [getattr(config, name, None) for name in ("boi_token_index", "eoi_token_index")]
    size = getattr(config.get_text_config(), "vocab_size", math.inf)
    return [mark for mark in marks if mark is not None] if all(mark is None or mark < size for mark in marks) else []


_COHERE = framed_by("<|START_OF_IMG|>", "<|END_OF_IMG|>")
_FAKES = framed_by("<fake_token_around_image>")

# The crops of an image are one run between two marks. So are the pages of a GOT-OCR2 document (multi_page): the prompt
# makes one image of them, and nothing in the call says where a page ends.
_CROPS = partial(ImageTokens, equal_shares, between_marks, marks=_begins_a_row)

FAMILIES = (
    Family(
        "idefics3",
        "Idefics3",
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "169 per tile, whole image included",
        ImageTokens(per_tile, between_fakes, frame=_FAKES),
        NO_LAYOUT,
        vllm=VllmClass("Idefics3ForConditionalGeneration"),
    ),
    Family(
        "smolvlm",
        "SmolVLM",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "81 per tile, whole image included",
        ImageTokens(per_tile, between_fakes, frame=_FAKES),
        NO_LAYOUT,
        vllm=VllmClass("SmolVLMForConditionalGeneration"),
    ),
    Family(
        "granite_docling",
        "Granite-Docling",
        "ibm-granite/granite-for-docling-500m",
        "64 per tile, whole image included",
        ImageTokens(per_tile, tile_marks_at_start, frame=_FAKES),
        NO_LAYOUT,
        vllm=UNKNOWN_TO_VLLM,
    ),
    Family(
        "aya_vision",
        "Aya Vision",
        "CohereForAI/aya-vision-8b",
        "169 per tile, thumbnail included",
        ImageTokens(equal_shares, until_mark_returns, frame=_COHERE),
        NO_LAYOUT,
        vllm=BY_TRANSFORMERS,
    ),
    Family(
        "cohere2_vision",
        "Command A Vision",
        "CohereLabs/command-a-vision-07-2025",
        "256 per tile, thumbnail included",
        ImageTokens(equal_shares, line_breaks, marks=_begins_a_row, frame=_COHERE),
        NO_LAYOUT,
        vllm=VllmClass("Cohere2VisionForConditionalGeneration"),
    ),
    Family(
        "llama4",
        "Llama 4",
        "meta-llama/Llama-4-Scout-17B-16E",
        "144 per tile, whole image included",
        ImageTokens(equal_shares, until_end_mark, frame=_llama_marks),
        NO_LAYOUT,
        vllm=VllmClass("Llama4ForConditionalGeneration"),
    ),
    Family(
        "ovis2",
        "Ovis2",
        "thisisiron/Ovis2-1B-hf",
        "256 per tile, thumbnail included",
        ImageTokens(
            equal_shares,
            visual_indicators,
            marks=lambda config: tuple(getattr(config, "visual_indicator_token_ids", ())),
        ),
        NO_LAYOUT,
        remote_code=("ovis",),
        vllm=Lacks(
            "vLLM's class Ovis is that of checkpoints with code of their own, and puts words between an image's tiles; "
            "for transformers' layout it runs transformers' modules, which need a processor that counts image tokens"
        ),
    ),
    Family(
        "lfm2_vl",
        "LFM2-VL",
        "LiquidAI/LFM2-VL-1.6B",
        "256 per tile, and a thumbnail",
        ImageTokens(_lfm_tiles, squares_until_mark_returns, frame=framed_by("<|image_start|>", "<|image_end|>")),
        NO_LAYOUT,
        flow=LINEAR_ATTENTION,
        vllm=VllmClass("Lfm2VLForConditionalGeneration"),
    ),
    Family(
        "perception_lm",
        "Perception LM",
        "facebook/Perception-LM-1B",
        "256 per tile, thumbnail included",
        ImageTokens(_tiles_of_images, units_are_lost=True),
        NO_LAYOUT,
        vllm=BY_TRANSFORMERS,
    ),
    Family(
        "got_ocr2",
        "GOT-OCR2",
        "stepfun-ai/GOT-OCR-2.0-hf",
        "256 per tile",
        _CROPS(frame=framed_by("<img>", "</img>")),
        NO_LAYOUT,
        NO_CHAT,
        remote_code=("GOT",),
        vllm=UNCOUNTED,
    ),
    Family(
        "aria",
        "Aria",
        "rhymes-ai/Aria",
        "256 per crop",
        _CROPS(frame=framed_by("<fim_prefix>", "<fim_suffix>")),
        NO_LAYOUT,
        vllm=VllmClass("AriaForConditionalGeneration"),
    ),
    Family(
        "pp_chart2table",
        "PP-Chart2Table",
        "PaddlePaddle/PP-Chart2Table_safetensors",
        "576",
        EQUAL,
        NO_LAYOUT,
        vllm=UNCOUNTED,
    ),  # a kin of GOT-OCR2 that cuts nothing
)
