"""Tiny models of the kin of families/tiles.py."""

from functools import partial

from tiny_families.batches import IMG, PAD, VOCABULARY, WIDTH, TinyFamily, per_sample
from tiny_families.configs import CLIP, IDEFICS_VISION, IDS, INDEX, LLAMA, QWEN2, SAM, SIGLIP, TILE, config, row, text
from tiny_families.pieces import (
    aya_piece,
    cohere_piece,
    docling_collate,
    docling_piece,
    idefics_piece,
    lfm_piece,
    llama_piece,
    ocr_piece,
    ovis_piece,
    perception_piece,
    run_piece,
    square_piece,
)


def idefics(model_type: str, name: str) -> TinyFamily:
    """Idefics 3 and SmolVLM are built alike."""
    made = config(
        f"{name}Config",
        text_config=LLAMA,
        vision_config={**CLIP, "model_type": f"{model_type}_vision"},
        scale_factor=2,
        image_token_id=IMG,
        pad_token_id=PAD,
    )
    return row(model_type, name, made, partial(idefics_piece, tokens=4), per_sample)


ROWS = (
    idefics("idefics3", "Idefics3"),
    idefics("smolvlm", "SmolVLM"),
    row(
        "granite_docling",
        "GraniteDocling",
        config(
            "GraniteDoclingConfig",
            text_config=text(),
            vision_config={
                **CLIP,
                "model_type": "granite_docling_vision",
                "scale_factor": 2,
                "out_hidden_size": WIDTH,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=IMG,
            pad_token_id=PAD,
        ),
        partial(docling_piece, tokens=4),
        docling_collate,
    ),
    row(
        "aya_vision",
        "AyaVision",
        config(
            "AyaVisionConfig", text_config=text(model_type="cohere2", sliding_window=64), vision_config=SIGLIP, **INDEX
        ),
        partial(aya_piece, tokens=4),
    ),
    row(
        "cohere2_vision",
        "Cohere2Vision",
        config(
            "Cohere2VisionConfig",
            text_config=text(model_type="cohere2", sliding_window=64),
            vision_config=SIGLIP,
            alignment_intermediate_size=64,
            image_token_id=IMG,
        ),
        partial(cohere_piece, tokens=4),
    ),
    row(
        "llama4",
        "Llama4",
        config(
            "Llama4Config",
            text_config=text(intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=64),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 4 * WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": TILE,
                "patch_size": 4,
                "projector_input_dim": WIDTH,
                "projector_output_dim": WIDTH,
                "vision_output_dim": WIDTH,
            },
            boi_token_index=3,
            eoi_token_index=4,
            **INDEX,
        ),
        partial(llama_piece, tokens=4),
        notes={
            "embeds": "Llama 4 takes pixels with ids only",
            "beams": "generate() does not expand Llama 4's features, which are not pooled",
        },
    ),
    row(
        "ovis2",
        "Ovis2",
        config(
            "Ovis2Config",
            text_config=QWEN2,
            vision_config={**CLIP, "model_type": "ovis2", "hidden_stride": 2, "vocab_size": 40},
            hidden_size=WIDTH,
            vocab_size=VOCABULARY,
            image_token_id=IMG,
            visual_indicator_token_ids=[3, 4, 5, 6, 7],
        ),
        partial(ovis_piece, tokens=4),
    ),
    row(
        "lfm2_vl",
        "Lfm2Vl",
        config(
            "Lfm2VlConfig",
            text_config=text(model_type="lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
            vision_config={**CLIP, "model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False},
            projector_hidden_size=WIDTH,
            image_token_id=IMG,
        ),
        lfm_piece,
    ),
    row(
        "perception_lm",
        "PerceptionLM",
        config(
            "PerceptionLMConfig",
            text_config=LLAMA,
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "do_pooling": False,
                "num_classes": 0,
                "num_features": WIDTH,
                "global_pool": "",
                "model_args": {
                    "embed_dim": WIDTH,
                    "depth": 2,
                    "num_heads": 2,
                    "img_size": (16, 16),
                    "patch_size": 4,
                    "use_post_transformer_norm": False,
                    "ref_feat_shape": (4, 4),
                },
            },
            projector_pooling_ratio=2,
            **IDS,
        ),
        partial(perception_piece, tokens=4),
    ),
    row(
        "got_ocr2",
        "GotOcr2",
        config(
            "GotOcr2Config",
            text_config=QWEN2,
            vision_config=SAM,
            **INDEX,
        ),
        ocr_piece,
    ),
    row(
        "aria",
        "Aria",
        config(
            "AriaConfig",
            text_config=text(model_type="aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            vision_config=IDEFICS_VISION,
            projector_patch_to_query_dict={16: 4},
            **INDEX,
        ),
        partial(run_piece, tokens=4),
    ),
    row(
        "pp_chart2table",
        "GotOcr2",
        config(
            "PPChart2TableConfig",
            text_config=QWEN2,
            vision_config=SAM,
            image_seq_length=16,
            tie_word_embeddings=False,
            **INDEX,
        ),
        partial(square_piece, tokens=16, size=64),
    ),
)
