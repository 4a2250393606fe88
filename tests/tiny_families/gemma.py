"""Tiny models of the kin of families/gemma.py."""

from functools import partial

from tiny_families.batches import VOCABULARY, WIDTH
from tiny_families.configs import GEMMA4_IDS, HEADS, INDEX, SIGLIP, config, row, text
from tiny_families.pieces import gemma4_piece, pooled_piece, square_piece

ROWS = (
    row(
        "gemma3",
        "Gemma3",
        config(
            "Gemma3Config",
            text_config=text(query_pre_attn_scalar=8, sliding_window=64),
            vision_config={**SIGLIP, "patch_size": 2},
            mm_tokens_per_image=16,
            boi_token_index=3,
            eoi_token_index=4,
            **INDEX,
        ),
        partial(square_piece, tokens=16),
    ),
    row(
        "gemma4",
        "Gemma4",
        config(
            "Gemma4Config",
            text_config=text(
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=VOCABULARY,
                sliding_window=64,
                layer_types=["sliding_attention", "full_attention"],
            ),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                **HEADS,
                "pooling_kernel_size": 2,
                "patch_size": 4,
                "position_embedding_size": 64,
            },
            **GEMMA4_IDS,
        ),
        gemma4_piece,
    ),
    row(
        "paligemma",
        "PaliGemma",
        config(
            "PaliGemmaConfig", text_config=text(model_type="gemma"), vision_config=SIGLIP, projection_dim=WIDTH, **INDEX
        ),
        partial(square_piece, tokens=16),
    ),
    row(
        "gemma4_unified",
        "Gemma4Unified",
        config(
            "Gemma4UnifiedConfig",
            text_config=text(sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
            vision_config={
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": WIDTH,
                "mm_posemb_size": 16,
                "output_proj_dims": WIDTH,
            },
            **GEMMA4_IDS,
        ),
        pooled_piece,
    ),
    row(
        "shieldgemma2",
        "Gemma3",
        config(
            "ShieldGemma2Config",
            text_config=text(model_type="gemma3_text", query_pre_attn_scalar=8, sliding_window=64),
            vision_config={**SIGLIP, "patch_size": 2},
            mm_tokens_per_image=16,
            boi_token_index=3,
            eoi_token_index=4,
            **INDEX,
        ),
        partial(square_piece, tokens=16),
        notes={"save": "its checkpoints are those of ShieldGemma2ForImageClassification: test_larger_models.py"},
    ),
)
