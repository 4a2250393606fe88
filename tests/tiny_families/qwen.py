"""Tiny models of the kin of families/qwen.py."""

from tiny_families.batches import AUDIO, IMG, VIDEO
from tiny_families.configs import (
    MOE,
    MROPE_INTERLEAVED,
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

ROWS = (
    row(
        "qwen2_vl",
        "Qwen2VL",
        config(
            "Qwen2VLConfig",
            text_config=text(**QWEN_ROPE),
            vision_config={**QWEN_VISION, "mlp_ratio": 2},
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "qwen3_vl_moe",
        "Qwen3VLMoe",
        config(
            "Qwen3VLMoeConfig",
            text_config=text(**QWEN_ROPE_INTERLEAVED, **MOE),
            vision_config=QWEN3_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "qwen3_5",
        "Qwen3_5",
        config(
            "Qwen3_5Config",
            text_config=text(**QWEN3_5_LAYERS),
            vision_config=QWEN_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        config(
            "Qwen3_5MoeConfig",
            text_config=text(
                **QWEN3_5_LAYERS,
                **MOE,
            ),
            vision_config=QWEN_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
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
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            audio_start_token_id=11,
            vision_start_token_id=3,
        ),
        QWEN_PATCH,
    ),
    row(
        "qwen4_exp",
        "Qwen4Exp",
        config(
            "Qwen4ExpConfig",
            text_config=text(
                rope_parameters={**MROPE_INTERLEAVED, "partial_rotary_factor": 1.0},
                layer_types=["linear_attention", "full_attention"],
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                hc_count=2,
                hc_lowrank=8,
                indexer_n_heads=2,
                indexer_kv_heads=1,
                indexer_head_dim=16,
                indexer_budget=256,
                indexer_compress_ratio=16,
                **MOE,
            ),
            vision_config=QWEN_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
)
