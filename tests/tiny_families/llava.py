"""Tiny models of the kin of families/llava.py."""

from functools import partial

from tiny_families.batches import VIDEO, padded_pixels, per_image
from tiny_families.configs import CLIP, INDEX, LAYERS, LLAMA, PIXTRAL, QWEN2, SIGLIP, config, row, text
from tiny_families.pieces import PINPOINTS, anyres_piece, onevision_piece, pixtral_piece, square_piece

ROWS = (
    row(
        "llava_onevision",
        "LlavaOnevision",
        config(
            "LlavaOnevisionConfig",
            text_config=QWEN2,
            vision_config=SIGLIP,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            video_token_index=VIDEO,
            **INDEX,
        ),
        onevision_piece,
        partial(per_image, count=True),
    ),
    row(
        "llava_next_video",
        "LlavaNextVideo",
        config(
            "LlavaNextVideoConfig",
            text_config=LLAMA,
            vision_config=CLIP,
            image_grid_pinpoints=PINPOINTS,
            video_token_index=VIDEO,
            **LAYERS,
            **INDEX,
        ),
        anyres_piece,
        per_image,
    ),
    row(
        "vipllava",
        "VipLlava",
        config("VipLlavaConfig", text_config=LLAMA, vision_config=CLIP, vision_feature_layers=[-2, 1], **INDEX),
        partial(square_piece, tokens=16),
    ),
    row(
        "video_llava",
        "VideoLlava",
        config("VideoLlavaConfig", text_config=LLAMA, vision_config=CLIP, video_token_index=VIDEO, **LAYERS, **INDEX),
        partial(square_piece, tokens=16),
    ),
    row(
        "fast_vlm",
        "FastVlm",
        config(
            "FastVlmConfig",
            text_config=QWEN2,
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "do_pooling": False,
                "global_pool": "",
                "hidden_size": 64,
                "image_size": 128,
                "model_args": {"inference_mode": True, "embed_dims": [8, 8, 16, 32, 32], "layers": [1, 1, 1, 1, 1]},
            },
            **INDEX,
        ),
        partial(square_piece, tokens=4, size=128),
    ),
    row(
        "llava",
        "Llava",
        config(
            "LlavaConfig",
            text_config=text(model_type="mistral"),
            vision_config=PIXTRAL,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **INDEX,
        ),
        pixtral_piece,
        padded_pixels,
    ),
)
