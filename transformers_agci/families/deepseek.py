"""DeepSeek-VL, DeepSeek-OCR 2, and who sees an image as they do.

DeepSeek-VL and Janus pad an image to a square, and every image has the same number of tokens. DeepSeek-OCR 2,
Unlimited-OCR and Step-3.7 look at the whole image and at as many crops of it as its size asks for
(`num_local_patches`); the crops' tokens stand before those of the whole.
"""

import math
from collections.abc import Sequence
from typing import Any

from transformers_agci.families.declaration import Family, ForwardCall, ImageTokens, VllmClass
from transformers_agci.families.image_tokens import EQUAL, encoded_lengths, in_rows
from transformers_agci.families.reasons import NO_LAYOUT, UNCOUNTED
from transformers_agci.families.token_layout import ImageInfo, Region, TokenGrid


def _padded_square(image: ImageInfo) -> list[TokenGrid]:
    """The longer side is fitted and the image padded on both sides of the shorter one: the tokens reach beyond it."""
    side = math.isqrt(image.tokens)
    longest = max(image.width, image.height)
    wide, tall = longest / image.width, longest / image.height
    region = Region((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)
    return [TokenGrid(0, side, side, side, region)]


def _crops(call: ForwardCall) -> list[int]:
    """How many crops each image of the call has."""
    counts = call.arguments.get("num_local_patches")
    return [0] * len(call.pixel_values) if counts is None else [int(count) for count in counts]


def _halved_twice(pixels: Any, patch_size: int) -> tuple[int, int]:
    """Rows and columns of tokens of one view: its patches, halved by two convolutions."""
    height, width = pixels.shape[-2:]
    return math.ceil(height // patch_size / 4), math.ceil(width // patch_size / 4)


def _queries(config: Any, pixels: Any) -> int:
    """DeepSeek-OCR 2 reads a view of up to 12 x 12 tokens with 144 queries of its own, a larger one with 256."""
    rows, columns = _halved_twice(pixels, config.vision_config.sam_config.patch_size)
    return 144 if rows * columns <= 144 else 256


def _by_queries(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """A separator ends the image: 144 per crop, 256 and 1."""
    if call.encoded is not None:
        return encoded_lengths(call)
    crops, local = _crops(call), call.arguments.get("pixel_values_local")
    per_crop = _queries(config, local) if local is not None else 0
    return [count * per_crop + _queries(config, call.pixel_values) + 1 for count in crops]


def _by_lines(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Unlimited-OCR: a newline token ends each row, of the crops put together and of the whole; a separator the image.

    patches_grid [images, 2] says columns and rows of the crops. A whole of 16 x 16 and 2 columns, 3 rows of crops of
    10 x 10 tokens: 30 * (20 + 1) + 16 * (16 + 1) + 1 = 903.
    """
    if call.encoded is not None:
        return encoded_lengths(call)
    patch, crops = config.vision_config.sam_config.patch_size, _crops(call)
    side, _ = _halved_twice(call.pixel_values, patch)
    local, grids = call.arguments.get("pixel_values_local"), call.arguments.get("patches_grid")
    lengths = [side * (side + 1) + 1] * len(crops)
    if local is None or grids is None:
        return lengths
    of_crop, _ = _halved_twice(local, patch)
    return [
        whole + (int(rows) * of_crop * (int(columns) * of_crop + 1) if count else 0)
        for whole, count, (columns, rows) in zip(lengths, crops, grids, strict=True)
    ]


def _by_crops(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Step-3.7: every crop and the whole stand between marks of their own, 2 or 3 between two of them."""
    if call.encoded is not None:
        return encoded_lengths(call)
    patch, local = config.vision_config.patch_size, call.arguments.get("pixel_values_local")
    per_crop = math.prod(_halved_twice(local, patch)) if local is not None else 0
    return [count * per_crop + math.prod(_halved_twice(call.pixel_values, patch)) for count in _crops(call)]


FAMILIES = (
    Family(
        "deepseek_vl",
        "DeepSeek-VL",
        "deepseek-community/deepseek-vl-1.3b-chat",
        "576",
        EQUAL,
        _padded_square,
        vllm=UNCOUNTED,
    ),
    Family(
        "deepseek_vl_hybrid",
        "DeepSeek-VL hybrid",
        "deepseek-community/deepseek-vl-7b-chat",
        "576",
        EQUAL,
        _padded_square,
        vllm=UNCOUNTED,
    ),
    Family("janus", "Janus", "deepseek-community/Janus-Pro-1B", "576", EQUAL, _padded_square, vllm=UNCOUNTED),
    Family(
        "deepseek_ocr2",
        "DeepSeek-OCR 2",
        "deepseek-community/DeepSeek-OCR-2",
        "144 per crop and 257",
        ImageTokens(_by_queries),
        NO_LAYOUT,
        vllm=VllmClass("DeepseekOCR2ForCausalLM"),
    ),
    Family(
        "unlimited_ocr",
        "Unlimited-OCR",
        "baidu/Unlimited-OCR",
        "100 per crop and 256, and newlines",
        ImageTokens(_by_lines),
        NO_LAYOUT,
        vllm=VllmClass("UnlimitedOCRForCausalLM"),
    ),
    Family(
        "step3p7",
        "Step-3.7",
        "stepfun-ai/Step-3.7-Flash",
        "81 per crop and 169",
        ImageTokens(_by_crops, rows=in_rows),
        NO_LAYOUT,
        vllm=VllmClass("Step3p7ForConditionalGeneration"),
    ),
)
