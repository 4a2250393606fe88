"""Tiny models of the kin of families/deepseek.py."""

from functools import partial

from tiny_families.batches import IMG, WIDTH, random
from tiny_families.configs import DEEPSEEK_MOE, LLAMA, SAM, SAM_HALVED, SIGLIP, TILE, VQ, config, row, text
from tiny_families.pieces import square_piece, step_tokens, views, views_piece

ROWS = (
    row(
        "deepseek_vl",
        "DeepseekVL",
        config("DeepseekVLConfig", text_config=LLAMA, vision_config=SIGLIP, image_token_id=IMG),
        partial(square_piece, tokens=16),
    ),
    row(
        "deepseek_vl_hybrid",
        "DeepseekVLHybrid",
        config(
            "DeepseekVLHybridConfig",
            text_config=LLAMA,
            vision_config=SIGLIP,
            high_res_vision_config={"model_type": "sam_vision_model", **SAM},
            image_token_id=IMG,
        ),
        partial(
            square_piece, tokens=16, more=lambda generator: {"high_res_pixel_values": random(generator, 1, 3, 64, 64)}
        ),
    ),
    row(
        "janus",
        "Janus",
        config(
            "JanusConfig",
            text_config=LLAMA,
            vision_config={
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": TILE,
                "patch_size": 4,
                "mlp_ratio": 2,
                "projection_dim": WIDTH,
                "num_image_tokens": 16,
            },
            vq_config={
                **VQ,
                "latent_channels": 16,
                "num_embeddings": 16,
                "num_patches": 4,
                "projection_dim": WIDTH,
                "image_token_embed_dim": WIDTH,
            },
            image_token_id=IMG,
        ),
        partial(square_piece, tokens=16),
    ),
    row(
        "deepseek_ocr2",
        "DeepseekOcr2",
        config(
            "DeepseekOcr2Config",
            text_config=text(mlp_layer_types=["dense", "sparse"], **DEEPSEEK_MOE),
            vision_config={"sam_config": SAM_HALVED, "encoder_config": text(num_hidden_layers=1)},
            image_token_id=IMG,
        ),
        partial(views_piece, image=lambda crops: [IMG] * (144 * crops + 145), size=64),
        views,
    ),
    row(
        "unlimited_ocr",
        "UnlimitedOcr",
        config(
            "UnlimitedOcrConfig",
            text_config=text(
                mlp_layer_types=["dense", "sparse"], sliding_window=64, num_key_value_heads=4, **DEEPSEEK_MOE
            ),
            vision_config={
                "sam_config": SAM_HALVED,
                "encoder_config": {
                    "hidden_size": WIDTH,
                    "intermediate_size": 64,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 16,
                    "patch_size": 4,
                },
            },
            image_token_id=IMG,
        ),
        partial(views_piece, image=lambda crops: [IMG] * (2 * (2 * crops + 1) * (crops > 0) + 4 * 5 + 1), size=64),
        partial(views, grid=True),
    ),
    row(
        "step3p7",
        "Step3p7",
        config(
            "Step3p7Config",
            text_config=text(
                mlp_layer_types=["dense", "sparse"],
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=64,
                num_sliding_attention_heads=4,
                num_local_experts=4,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                share_expert_dim=32,
            ),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 4,
                "mlp_ratio": 2.0,
                "max_position_embeddings": 256,
            },
            image_token_id=IMG,
        ),
        partial(views_piece, image=step_tokens, size=64),
        views,
    ),
)
