"""MiniCPM-V and MiniCPM-OCR: the whole image, then slices of it, each between marks of its own."""

import math
from collections.abc import Sequence
from typing import Any

from transformers_agci.families.declaration import Family, ForwardCall, ImageTokens, Lacks, VllmClass
from transformers_agci.families.image_tokens import encoded_lengths, slices_behind_whole
from transformers_agci.families.reasons import LINEAR_ATTENTION, NO_LAYOUT, UNKNOWN_TO_VLLM


def _by_target_sizes(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """target_sizes [units, 2] says each one's patches: 4x4 make a token, 2x2 where the call or the config says 4x."""
    sizes = call.arguments.get("target_sizes")
    if call.encoded is not None or sizes is None:
        return encoded_lengths(call)
    mode = call.arguments.get("downsample_mode") or config.downsample_mode
    merged = math.prod(config.merge_kernel_size) ** config.merger_times * (1 if mode == "4x" else 4)
    lengths: list[int] = (sizes.prod(dim=-1) // merged).tolist()
    return lengths


def _marks(config: Any) -> Sequence[int]:
    """The mark before a slice, where the config says it."""
    found = getattr(config, "slice_start_id", None)
    return () if found is None else (found,)


_SLICES = ImageTokens(_by_target_sizes, slices_behind_whole, marks=_marks)


_CANVAS = Lacks("it lays images, slices and their marks out on a canvas of positions of its own")


def _minicpm(model_type: str, name: str, hub_id: str, tokens: str, **more: Any) -> Family:
    return Family(model_type, name, hub_id, tokens, _SLICES, NO_LAYOUT, flow=LINEAR_ATTENTION, **more)


FAMILIES = (
    _minicpm(
        "minicpmv4_6",
        "MiniCPM-V 4.6",
        "openbmb/MiniCPM-V-4.6",
        "64 per slice, whole image included",
        vllm=VllmClass("MiniCPMV4_6ForConditionalGeneration"),
    ),
    _minicpm(
        "minicpmv4_7",
        "MiniCPM-V 4.7",
        "openbmb/MiniCPM-V-4.7-1B",
        "64 per slice, whole image included",
        positions=_CANVAS,
        vllm=VllmClass("MiniCPMV4_7ForConditionalGeneration"),
    ),
    _minicpm(
        "minicpm_ocr",
        "MiniCPM-OCR",
        "openbmb/MiniCPM-OCR-1.0",
        "256 per slice, whole image included",
        vllm=UNKNOWN_TO_VLLM,
    ),
)
