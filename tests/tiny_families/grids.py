"""Tiny models of the kin of families/grids.py whose pixels come in patches with `image_grid_thw`, as Qwen's."""

from tiny_families.batches import IMG, VIDEO, WIDTH
from tiny_families.configs import (
    CLIP_SIZES,
    DSA,
    GLM_4V,
    GLM_IDS,
    GLM_ROPE,
    GLM_VISION,
    IDS,
    IDS_WITH_AUDIO,
    INKLING,
    INKLING2_VISION,
    MOE,
    MROPE,
    MROPE_INTERLEAVED,
    MUSE_V,
    QWEN3_VISION,
    QWEN_IDS,
    QWEN_VISION,
    config,
    row,
    text,
)
from tiny_families.pieces import (
    QWEN_PATCH,
    hy4_piece,
    token_grid_piece,
)
from tiny_families.qwen import qwen_row

# Since transformers 5.24.
NEWEST = (
    row(
        "hy_v4_vl",
        "HYV4VL",
        config(
            "HYV4VLConfig",
            text_config=text(
                **{**DSA, "head_dim": 16, "qk_rope_head_dim": 8},
                rope_parameters=MROPE,
                mlp_layer_types=["dense", "sparse"],
                indexer_types=["full", "full"],
                hc_mult=2,
            ),
            vision_config={
                **CLIP_SIZES,
                "spatial_merge_size": 2,
                "out_hidden_size": WIDTH,
                "max_image_size": 64,
            },
            **IDS,
        ),
        hy4_piece,
        lora="q_a_proj|o_proj",
    ),
    row(
        "inkling2_loop",
        "Inkling2Loop",
        config(
            "Inkling2LoopConfig",
            text_config=text(
                num_hidden_layers=4,
                **INKLING,
                n_layers_per_attn_res_block=1,
                layer_types=["hybrid_sliding", "hybrid"] * 2,
                loop_layer_index_start=1,
                loop_layer_index_end=3,
                loop_num_passes=2,
                loop_gate_rank=4,
            ),
            vision_config=INKLING2_VISION,
            image_token_id=IMG,
        ),
        token_grid_piece,
        lora="linear",
    ),
)

ROWS = (
    *NEWEST,
    row(
        "glm4v",
        "Glm4v",
        config(
            "Glm4vConfig",
            text_config=text(**GLM_ROPE),
            vision_config=GLM_VISION,
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "glm4v_moe",
        "Glm4vMoe",
        config(
            "Glm4vMoeConfig",
            text_config=text(
                rope_scaling=MROPE,
                partial_rotary_factor=1.0,
                rope_parameters={**MROPE, "partial_rotary_factor": 1.0},
                n_shared_experts=1,
                first_k_dense_replace=1,
                **MOE,
            ),
            vision_config=GLM_VISION,
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "glm46v",
        "Glm46V",
        config("Glm46VConfig", **GLM_4V),
        QWEN_PATCH,
    ),
    row(
        "exaone4_5",
        "Exaone4_5_",
        config(
            "Exaone4_5_Config",
            text_config=text(model_type="exaone4", layer_types=["full_attention", "full_attention"]),
            vision_config={**QWEN_VISION, "num_key_value_heads": 2, "fullatt_block_indexes": [1], "window_size": 16},
            **IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "glm_ocr",
        "GlmOcr",
        config(
            "GlmOcrConfig",
            # three times the width: so is its merger's, which vLLM sizes by it
            text_config=text(intermediate_size=3 * WIDTH, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}),
            vision_config=GLM_VISION,
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "glmga",
        "Glm46V",
        config("GlmgaConfig", **GLM_4V),
        QWEN_PATCH,
    ),
    qwen_row(
        "cohere_compass", "CohereCompass", text(rope_parameters={"full_attention": MROPE_INTERLEAVED}), QWEN3_VISION
    ),
    qwen_row(
        "cosmos3_omni",
        "Cosmos3Omni",
        text(model_type="qwen3_vl_text", rope_parameters=MROPE_INTERLEAVED),
        {**QWEN_VISION, "model_type": "qwen3_vl_vision", "deepstack_visual_indexes": [0]},
    ),
    row(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2",
        config(
            "HyperCLOVAXVisionV2Config",
            text_config=text(model_type="hyperclovax"),
            vision_config={
                **QWEN_VISION,
                "model_type": "qwen2_5_vl_vision",
                "fullatt_block_indexes": [1],
                "window_size": 16,
            },
            **IDS,
            tie_word_embeddings=False,
        ),
        QWEN_PATCH,
    ),
    row(
        "muse_glimmer",
        "MuseGlimmer",
        config(
            "MuseGlimmerConfig",
            text_config=text(sliding_window=64, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
            vision_config=MUSE_V,
            **IDS,
            out_hidden_size=4 * WIDTH,
            projector_hidden_size=WIDTH,
        ),
        QWEN_PATCH,
    ),
    row(
        "lfm3_vl",
        "Lfm3Vl",
        config(
            "Lfm3VlConfig",
            text_config=text(model_type="lfm3", layer_types=["conv", "full_attention"], sliding_window=64),
            vision_config={
                **CLIP_SIZES,
                "num_key_value_heads": 2,
                "spatial_merge_size": 2,
                "layer_types": ["conv", "full_attention"],
            },
            projector_hidden_size=WIDTH,
            tie_word_embeddings=False,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    row(
        "minimax_m3_vl",
        "MiniMaxM3Sparse",
        config(
            "MiniMaxM3VLConfig",
            text_config=text(
                num_local_experts=4,
                num_experts_per_tok=2,
                dense_intermediate_size=32,
                shared_intermediate_size=32,
                rotary_dim=8,
                layer_types=["full_attention", "full_attention"],
                mlp_layer_types=["dense", "sparse"],
            ),
            vision_config={**CLIP_SIZES, "image_size": 64, "num_attention_heads": 2},
            image_token_index=IMG,
            video_token_index=VIDEO,
            projector_hidden_size=WIDTH,
        ),
        QWEN_PATCH,
    ),
    row(
        "muse_spark",
        "MuseSpark",
        config(
            "MuseSparkConfig",
            text_config=text(
                sliding_window=64,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                moe_intermediate_size=32,
                num_local_experts=4,
                num_experts_per_tok=2,
                moe_hidden_size=WIDTH,
            ),
            vision_config=MUSE_V,
            audio_config={"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_hidden_size": WIDTH},
            **IDS_WITH_AUDIO,
            out_hidden_size=4 * WIDTH,
            projector_hidden_size=WIDTH,
        ),
        QWEN_PATCH,
    ),
    row(
        "glm5_next",
        "Glm5Next",
        config(
            "Glm5NextConfig",
            text_config=text(
                **{**DSA, "qk_rope_head_dim": 0},
                layer_types=["linear_attention", "indexed_attention"],
                mlp_layer_types=["dense", "sparse"],
                indexer_types=["full", "full"],
                linear_head_dim=8,
                linear_num_heads=2,
                hc_mult=2,
                hc_sinkhorn_iters=2,
                index_kpool=16,
            ),
            vision_config={**QWEN_VISION, "image_size": 32, "projection_intermediate_size": 64},
            **GLM_IDS,
        ),
        QWEN_PATCH,
        lora="q_a_proj|o_proj",
    ),
)
