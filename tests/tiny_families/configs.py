"""Configs of small decoders and vision towers that several families share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers

from tiny_families.batches import AUDIO, BOS, EOS, IMG, PAD, VIDEO, VOCABULARY, WIDTH, Piece, TinyFamily, concatenated


def text(**more: Any) -> dict[str, Any]:
    """A small decoder's config."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **more,
    }


MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


MROPE_INTERLEAVED = {**MROPE, "mrope_interleaved": True}


def config(name: str, **values: Any) -> Callable[[], Any]:
    """A config by class name, made when it is asked for: older versions of transformers do not have all of them."""
    return partial(_made, name, values)


def _made(name: str, values: dict[str, Any]) -> Any:
    return getattr(transformers, name)(**values)


QWEN_VISION = {
    "depth": 2,
    "hidden_size": WIDTH,
    "embed_dim": WIDTH,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 16,
    "in_channels": 3,
}


IDS = {"image_token_id": IMG, "video_token_id": VIDEO}


IDS_WITH_AUDIO = {**IDS, "audio_token_id": AUDIO}


QWEN_IDS = {**IDS, "vision_start_token_id": 3, "vision_end_token_id": 4}


TILE = 16  # pixels


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": 4,
    "projection_dim": WIDTH,
}


IDEFICS_VISION = transformers.Idefics3VisionConfig(**{**CLIP, "model_type": "idefics3_vision"})


SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}


def sizes(name: str, **values: Any) -> Callable[[], Any]:
    return config(name, image_token_id=IMG, **values)


def row(
    model_type: str,
    model: str,
    made: Callable[[], Any],
    piece: Callable[..., Piece],
    collate: Callable[..., dict[str, torch.Tensor]] = concatenated,
    **more: Any,
) -> TinyFamily:
    return TinyFamily(model_type, f"{model}ForConditionalGeneration", made, piece, collate, **more)


LLAMA = text(model_type="llama")


QWEN2 = text(model_type="qwen2")


LAYERS = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}


INDEX = {"image_token_index": IMG}


CLIP_SIZES = {name: value for name, value in CLIP.items() if name not in ("model_type", "image_size", "projection_dim")}


PIXTRAL = {**CLIP, "model_type": "pixtral", "image_size": 64, "head_dim": 16}


HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}


WINDOWS = {"fullatt_block_indexes": [1], "window_size": 16}


QWEN_ROPE = {"rope_parameters": MROPE, "rope_scaling": MROPE}


QWEN_ROPE_INTERLEAVED = {"rope_parameters": MROPE_INTERLEAVED, "rope_scaling": MROPE_INTERLEAVED}


QWEN3_VISION = {**QWEN_VISION, "deepstack_visual_indexes": [0]}


OMNI_AUDIO = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "output_dim": WIDTH,
}


GLM_VISION = {**QWEN_VISION, "image_size": 32}


GLM_ROPE = {"rope_scaling": MROPE, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}


GLM_IDS = {
    **IDS,
    "image_start_token_id": 3,
    "image_end_token_id": 4,
    "video_start_token_id": 11,
    "video_end_token_id": 12,
}


GLM_4V = {
    "text_config": text(model_type="glm4v_text", **GLM_ROPE),
    "vision_config": {**GLM_VISION, "model_type": "glm4v_vision"},
    **GLM_IDS,
}


GEMMA4_IDS = {**IDS_WITH_AUDIO, "boi_token_id": 3, "eoi_token_id": 4, "boa_token_id": 11, "eoa_token_index": 12}


INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 64,
    "d_rel": 4,
    "rel_extent": 64,
    "unpadded_vocab_size": VOCABULARY,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


INKLING2_VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "mlp_ratio": 2.0,
    "posemb_grid_size": 8,
    "projection_hidden_dim": WIDTH,
    "text_hidden_size": WIDTH,
}


VQ = {
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}


DSA = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "index_topk": 256,
    "index_head_dim": 16,
    "index_n_heads": 2,
}


MUSE_V = {
    "patch_size": 4,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
}


QWEN3_5_LAYERS = {
    "rope_parameters": {**MROPE_INTERLEAVED, "partial_rotary_factor": 1.0},
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}


QWEN3_5 = text(model_type="qwen3_5_text", **QWEN3_5_LAYERS)


SAM = {
    "hidden_size": WIDTH,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 4,
    "global_attn_indexes": [1],
    "window_size": 2,
    "mlp_dim": 64,
}


SAM_HALVED = {**SAM, "downsample_channels": [16, WIDTH]}


DEEPSEEK_MOE = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
