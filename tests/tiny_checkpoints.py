"""The six families as tiny random checkpoints: real model and processor classes, about 0.1 M parameters each.

Nothing is downloaded and nothing is trained; the same seed gives the same weights on every run. It works on
transformers 4.57.1 to 5.24.0. Gemma3n needs timm and torchvision, the Qwen and InternVL processors torchvision.

    model, processor = build_model("llava"), build_processor("llava")
    logits = model(**make_inputs("llava", model, batch=2)).logits
    folder = checkpoint("llava", tmp_path / "llava")     # AutoProcessor and AutoModelForImageTextToText load it

The models are here, tokenizers and processors in family_processors.py, inputs in family_inputs.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from family_inputs import image_tokens, make_inputs, make_pixels, prompt_inputs, random_image
from family_processors import CHAT_TEMPLATES, FAMILIES, GEMMA_TAIL, TRANSFORMERS_5, build_processor, build_tokenizer

__all__ = [
    "CHAT_TEMPLATES",
    "FAMILIES",
    "MODEL_CLASSES",
    "TRANSFORMERS_5",
    "Checkpoints",
    "build_config",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "checkpoint",
    "image_tokens",
    "make_inputs",
    "make_pixels",
    "prompt_inputs",
    "random_image",
]

Checkpoints = Callable[[str], Path]  # what conftest's `tiny_checkpoint` is: family -> folder

MODEL_CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}


def _text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def _qwen_config(family: str, tokenizer: Any, changes: dict[str, Any]) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    # 4.57 and 5.x both read this form of the rope settings
    if family == "qwen2_5_vl":
        config_class: Any = transformers.Qwen2_5_VLConfig
        rope: dict[str, Any] = {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}
        text = _text_config(tokenizer, rope_scaling=rope, use_sliding_window=False)
        vision |= {"depth": 2, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    else:
        config_class = transformers.Qwen3VLConfig
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        text = _text_config(tokenizer, rope_scaling=rope, head_dim=8)
        vision |= {"depth": 3, "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return config_class(
        text_config=text | changes,
        vision_config=vision,
        tie_word_embeddings=False,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )


def _gemma3n_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    ids = tokenizer.convert_tokens_to_ids
    vision_start = ids(GEMMA_TAIL[0])
    text = _text_config(
        tokenizer,
        vocab_size=vision_start + 6,  # the model takes the last text id as its audio padding
        vocab_size_per_layer_input=vision_start,
        hidden_size_per_layer_input=8,
        head_dim=8,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        altup_num_inputs=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    )
    text.pop("tie_word_embeddings")
    audio = {
        "vocab_size": 3,
        "vocab_offset": vision_start + 3,
        "input_feat_size": 128,
        "hidden_size": 32,
        "conf_num_hidden_layers": 1,
        "conf_num_attention_heads": 2,
        "conf_attention_chunk_size": 4,
        "conf_attention_context_left": 5,
        "conf_attention_context_right": 0,
        "sscp_conv_channel_size": [8, 8],
    }
    return transformers.Gemma3nConfig(
        text_config=text | changes,
        # Stands in for MobileNetV5, which ignores its config and has 294 M parameters: 128x128 pixels -> 4x4 tokens.
        vision_config={
            "architecture": "test_efficientnet",
            "hidden_size": 256,
            "vocab_size": 3,
            "vocab_offset": vision_start,
        },
        audio_config=audio,
        vision_soft_tokens_per_image=16,
        audio_soft_tokens_per_image=188,
        boi_token_id=ids("<start_of_image>"),
        eoi_token_id=ids("<end_of_image>"),
        image_token_id=ids("<image_soft_token>"),
        boa_token_id=ids("<start_of_audio>"),
        eoa_token_id=ids("<end_of_audio>"),
        audio_token_id=ids("<audio_soft_token>"),
    )


def _internvl_config(tokenizer: Any, changes: dict[str, Any]) -> Any:
    return transformers.InternVLConfig(
        text_config=_text_config(tokenizer, model_type="qwen2", use_sliding_window=False) | changes,
        vision_config={
            "model_type": "internvl_vision",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "use_qk_norm": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,  # any other layer reads an attribute that 4.57's model lacks
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _llava_config(family: str, tokenizer: Any, changes: dict[str, Any]) -> Any:
    clip = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 32,
    }
    shared = {
        "vision_config": clip,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": 16,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }
    if family == "llava":
        return transformers.LlavaConfig(text_config=_text_config(tokenizer, model_type="llama") | changes, **shared)
    return transformers.LlavaNextConfig(
        text_config=_text_config(tokenizer, model_type="mistral") | changes,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
        **shared,
    )


def build_config(family: str, **changes: Any) -> Any:
    """The family's config; `changes` go into its text config (`num_hidden_layers=2`)."""
    tokenizer = build_tokenizer(family)
    if family in ("qwen2_5_vl", "qwen3_vl"):
        return _qwen_config(family, tokenizer, changes)
    if family == "gemma3n":
        return _gemma3n_config(tokenizer, changes)
    if family == "internvl":
        return _internvl_config(tokenizer, changes)
    return _llava_config(family, tokenizer, changes)


def build_model(
    family: str, seed: int = 0, attn_implementation: str | None = None, yes_no: bool = False, **changes: Any
) -> Any:
    """A seeded random model in eval mode, float32, on the CPU; its vocabulary is that of `build_processor(family)`.

    `yes_no` makes the first answer token Yes or No for every prompt (which of the two depends on the prompt);
    without it a random model answers with bytes. `changes` go into the text config.
    """
    config = build_config(family, **changes)
    model_class = getattr(transformers, MODEL_CLASSES[family])
    torch.manual_seed(seed)
    chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model = model_class._from_config(config, **chosen).eval()
    tokenizer = build_tokenizer(family)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if family == "gemma3n":
        _settle_batch_norms(model.model.vision_tower)
    if family == "qwen2_5_vl":
        model.generation_config.repetition_penalty = 1.05  # as the published checkpoints have it
    if yes_no:
        _lift_yes_no(model, family, seed)
    return model


def _settle_batch_norms(tower: Any) -> None:
    """Give the batch norms the statistics of random pixels; untrained ones let every image token look the same."""
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        tower(torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0)), do_pooling=False)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _lift_yes_no(model: Any, family: str, seed: int) -> None:
    """Give Yes and No output rows that lift both above all others and tell prompts apart.

    The last hidden state h of a random model is much the same for every prompt. Both rows share its direction; they
    differ along a random direction orthogonal to it, which sees only what differs from prompt to prompt.
    """
    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
    with torch.no_grad():
        model(**prompt_inputs(build_processor(family), "A prompt that no test asks.", random_image(seed=99)))
    hook.remove()
    common = torch.nn.functional.normalize(seen[0], dim=0)  # [D]
    apart = torch.randn(common.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=common.dtype)
    apart -= (apart @ common) * common
    tokenizer = build_tokenizer(family)
    for word, sign in (("Yes", 1.0), ("No", -1.0)):
        head.weight.data[tokenizer.convert_tokens_to_ids(word)] = 2 * common + sign * apart


def checkpoint(family: str, folder: Path, seed: int = 0, yes_no: bool = True, **changes: Any) -> Path:
    """Save model and processor below `folder` (safetensors) and return it."""
    build_model(family, seed=seed, yes_no=yes_no, **changes).save_pretrained(folder)
    build_processor(family).save_pretrained(folder)
    return folder
