"""The token counts at 840x840, from the real processor classes with the settings of the published checkpoints.

The settings below are the published preprocessor_config.json files' public values; only the tokenizers are tiny.
"""

from typing import Any

import pytest
import transformers
from PIL import Image
from tiny_checkpoints import CHAT_TEMPLATES, TRANSFORMERS_5, build_tokenizer, prompt_inputs

from transformers_agci.families import paper_families

CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
QWEN_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}

# family -> processor class, image processor and its settings, further settings of the processor, image tokens
PUBLISHED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], int]] = {
    "qwen2_5_vl": (
        "Qwen2_5_VLProcessor",
        "Qwen2VLImageProcessor",
        {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "size": QWEN_PIXELS},
        {},
        900,
    ),
    "qwen3_vl": (
        "Qwen3VLProcessor",
        "Qwen2VLImageProcessor",
        {
            "patch_size": 16,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        },
        {},
        676,
    ),
    "gemma3n": (
        "Gemma3nProcessor",
        "SiglipImageProcessor",
        {"size": {"height": 768, "width": 768}, "do_normalize": False},
        {"audio_seq_length": 188, "image_seq_length": 256},
        256,
    ),
    # 840x840 becomes 2x2 tiles of 448 pixels (3x3 would enlarge it to more than twice its area) and a thumbnail
    "internvl": (
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        {"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12, "crop_to_patches": True},
        {"image_seq_length": 256},
        5 * 256,
    ),
    "llava_next": (
        "LlavaNextProcessor",
        "LlavaNextImageProcessor",
        {**CLIP_336, "image_grid_pinpoints": PINPOINTS},
        LLAVA,
        2928,
    ),
    "llava": ("LlavaProcessor", "CLIPImageProcessor", CLIP_336, LLAVA, 576),
}


def build(family: str) -> Any:
    name, images, settings, more, _ = PUBLISHED[family]
    parts: dict[str, Any] = {
        "image_processor": getattr(transformers, images if TRANSFORMERS_5 else f"{images}Fast")(**settings),
        "tokenizer": build_tokenizer(family),
        "chat_template": CHAT_TEMPLATES[family],
    }
    videos = {
        "qwen2_5_vl": "Qwen2VLVideoProcessor",
        "qwen3_vl": "Qwen3VLVideoProcessor",
        "internvl": "InternVLVideoProcessor",
    }
    if family in videos:
        parts["video_processor"] = getattr(transformers, videos[family])()
    if family == "gemma3n":
        parts["feature_extractor"] = transformers.Gemma3nAudioFeatureExtractor()
    return getattr(transformers, name)(**parts, **more)


@pytest.mark.parametrize("family", paper_families())
def test_image_tokens_at_840(family: str) -> None:
    processor = build(family)
    ids = prompt_inputs(processor, "Is it?", Image.new("RGB", (840, 840), "white"))["input_ids"][0]
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert int((ids == image_token).sum()) == PUBLISHED[family][-1]
