"""Tiny models of the kin of families/qwen.py."""

from typing import Any

from tiny_families.batches import AUDIO, IMG, VIDEO, TinyFamily
from tiny_families.configs import (
    IDS_WITH_AUDIO,
    MOE,
    OMNI_AUDIO,
    QWEN3_5_LAYERS,
    QWEN3_VISION,
    QWEN_IDS,
    QWEN_ROPE,
    QWEN_ROPE_INTERLEAVED,
    QWEN_VISION,
    WINDOWS,
    config,
    row,
    text,
)
from tiny_families.pieces import QWEN_PATCH


def qwen_row(model_type: str, name: str, text_config: Any, vision_config: Any) -> TinyFamily:
    """A model with the token ids and patches of Qwen's."""
    made = config(f"{name}Config", text_config=text_config, vision_config=vision_config, **QWEN_IDS)
    return row(model_type, name, made, QWEN_PATCH)


ROWS = (
    qwen_row("qwen2_vl", "Qwen2VL", text(**QWEN_ROPE), {**QWEN_VISION, "mlp_ratio": 2}),
    qwen_row("qwen3_vl_moe", "Qwen3VLMoe", text(**QWEN_ROPE_INTERLEAVED, **MOE), QWEN3_VISION),
    qwen_row("qwen3_5", "Qwen3_5", text(**QWEN3_5_LAYERS), QWEN_VISION),
    qwen_row("qwen3_5_moe", "Qwen3_5Moe", text(**QWEN3_5_LAYERS, **MOE), QWEN_VISION),
    row(
        "qwen2_5_omni_thinker",
        "Qwen2_5OmniThinker",
        config(
            "Qwen2_5OmniThinkerConfig",
            text_config=text(**QWEN_ROPE),
            vision_config={**QWEN_VISION, **WINDOWS},
            audio_config=OMNI_AUDIO,
            image_token_index=IMG,
            video_token_index=VIDEO,
            audio_token_index=AUDIO,
            vision_start_token_id=3,
            vision_end_token_id=4,
            audio_start_token_id=11,
            audio_end_token_id=12,
        ),
        QWEN_PATCH,
    ),
    row(
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeThinker",
        config(
            "Qwen3OmniMoeThinkerConfig",
            text_config=text(**QWEN_ROPE_INTERLEAVED, **MOE),
            vision_config=QWEN3_VISION,
            audio_config=OMNI_AUDIO,
            **IDS_WITH_AUDIO,
            audio_start_token_id=11,
            vision_start_token_id=3,
        ),
        QWEN_PATCH,
    ),
    qwen_row(
        "qwen4_exp",
        "Qwen4Exp",
        text(
            **QWEN3_5_LAYERS,
            hc_count=2,
            hc_lowrank=8,
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=16,
            indexer_budget=256,
            indexer_compress_ratio=16,
            **MOE,
        ),
        QWEN_VISION,
    ),
)
