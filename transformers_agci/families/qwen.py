"""Qwen's vision-language models: the image is resized whole, and 2x2 patches are merged into a token.

Of the Omni models the thinker is served, and of what it takes the images.
"""

from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families.declaration import Family, Lacks, VllmClass
from transformers_agci.families.image_tokens import GRID
from transformers_agci.families.reasons import LINEAR_ATTENTION
from transformers_agci.families.token_layout import patch_grid
from transformers_agci.families.training_support import CHATML, Bound, Pixels, Size, Template, TrainingSupport

_QWEN_VL: dict[str, Any] = {
    **CHATML,
    "image": "<|vision_start|>{tokens}<|vision_end|>",
    "image_token": "<|image_pad|>",
    "words": ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
}

# The processor refuses images that are narrower than a token or longer than 200 times their width.
_BOUNDS: tuple[Bound, ...] = (
    (lambda s: min(s) < 28, lambda s: (max(s[0], 28), max(s[1], 28))),
    (lambda s: s[0] / s[1] > 200, lambda s: (s[1] * 180, s[1])),
    (lambda s: s[1] / s[0] > 200, lambda s: (s[0], s[0] * 180)),
)


def _count_tokens(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return int(pixels()["image_grid_thw"][0].prod()) // int(processor.image_processor.merge_size) ** 2


def pin_pixels(images: Any, least: int | None, most: int | None) -> None:
    """Put bounds on the pixels of an image into a Qwen image processor, in the form its version reads."""
    size = dict(images.size)
    low = size["shortest_edge"] if least is None else least
    high = size["longest_edge"] if most is None else most
    if not 0 < low <= high:
        raise InputError(f"The image size needs 0 < min_pixels <= max_pixels, but they are {low} and {high}.")
    images.size = type(images.size)(**(size | {"shortest_edge": low, "longest_edge": high}))
    for name, value in (("min_pixels", low), ("max_pixels", high)):
        if hasattr(images, name):
            setattr(images, name, value)


_QWEN_2 = TrainingSupport(
    (Template("qwen2_vl", default_system="You are a helpful assistant.", **_QWEN_VL),), _count_tokens, _BOUNDS
)


_OMNI = Lacks("its checkpoints hold the whole Omni model; load that in a program of yours and attach to its thinker")


def _qwen(model_type: str, name: str, hub_id: str, tokens: str, **more: Any) -> Family:
    return Family(model_type, name, hub_id, tokens, GRID, patch_grid, image_size=pin_pixels, **more)


FAMILIES = (
    _qwen(
        "qwen2_5_vl",
        "Qwen2.5-VL",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "900",
        training=_QWEN_2,
        vision_windows=True,
        grid_positions=True,
        in_paper=True,
        vllm=VllmClass("Qwen2_5_VLForConditionalGeneration", extra_columns=True),
    ),
    _qwen(
        "qwen3_vl",
        "Qwen3-VL",
        "Qwen/Qwen3-VL-8B-Instruct",
        "676",
        training=TrainingSupport(
            (
                Template("qwen3_vl", thought="<think>\n\n</think>\n\n", **_QWEN_VL),
                Template("qwen3_vl_nothink", **_QWEN_VL),
            ),
            _count_tokens,
            _BOUNDS,
        ),
        grid_positions=True,
        in_paper=True,
        vllm=VllmClass("Qwen3VLForConditionalGeneration", extra_columns=True),
    ),
    _qwen(
        "qwen2_vl",
        "Qwen2-VL",
        "Qwen/Qwen2-VL-7B-Instruct",
        "900",
        training=_QWEN_2,
        vllm=VllmClass("Qwen2VLForConditionalGeneration"),
    ),
    _qwen(
        "qwen3_vl_moe",
        "Qwen3-VL-MoE",
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "676",
        vllm=VllmClass("Qwen3VLMoeForConditionalGeneration", extra_columns=True),
    ),
    _qwen(
        "qwen3_5",
        "Qwen3.5",
        "Qwen/Qwen3.5-27B",
        "676",
        flow=LINEAR_ATTENTION,
        vllm=VllmClass("Qwen3_5ForConditionalGeneration", extra_columns=True),
    ),
    _qwen(
        "qwen3_5_moe",
        "Qwen3.5-MoE",
        "Qwen/Qwen3.5-35B-A3B",
        "676",
        flow=LINEAR_ATTENTION,
        vllm=VllmClass("Qwen3_5MoeForConditionalGeneration", extra_columns=True),
    ),
    _qwen(
        "qwen4_exp",
        "Qwen4 (experimental)",
        "Qwen/Qwen4-Exp",
        "676",
        flow=LINEAR_ATTENTION,
        vllm=VllmClass("Qwen4ExpForConditionalGeneration", extra_columns=True),
    ),
    _qwen(
        "qwen2_5_omni_thinker",
        "Qwen2.5-Omni thinker",
        "Qwen/Qwen2.5-Omni-7B",
        "900",
        probe=_OMNI,
        vllm=VllmClass("Qwen2_5OmniThinkerForConditionalGeneration"),
    ),
    _qwen(
        "qwen3_omni_moe_thinker",
        "Qwen3-Omni thinker",
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        "676",
        probe=_OMNI,
        vllm=VllmClass("Qwen3OmniMoeThinkerForConditionalGeneration", extra_columns=True),
    ),
)
