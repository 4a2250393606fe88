"""The six families as tiny random checkpoints: real model and processor classes, about 0.1 M parameters each.

Nothing is downloaded and nothing is trained; the same seed gives the same weights on every run. It works on
transformers 4.57.1 to 5.23.0. Gemma3n needs timm and torchvision, the Qwen and InternVL processors torchvision.

    model, processor = build_model("llava"), build_processor("llava")
    logits = model(**make_inputs("llava", model, batch=2)).logits
    folder = checkpoint("llava", tmp_path / "llava")     # AutoProcessor and AutoModelForImageTextToText load it
"""

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3n", "internvl", "llava_next", "llava")

TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5

# Words that are one token; everything else is spelled in bytes.
WORDS = (
    "Yes",
    "No",
    " Yes",
    " No",
    "Determine",
    " if",
    " there",
    " is",
    " a",
    " sub",
    "image",
    " in",
    " the",
    " given",
    " that",
    " matches",
    " text",
    " following",
    "Text",
    "The",
    " answer",
    " should",
    " only",
    " contain",
    " or",
    " without",
    " reasoning",
    " process",
    " picture",
    " of",
    " dog",
    " cat",
    " red",
    " square",
)

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LLAVA_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
SPECIALS = {
    "qwen2_5_vl": QWEN_SPECIALS,
    "qwen3_vl": QWEN_SPECIALS,
    "internvl": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "llava_next": LLAVA_SPECIALS,
    "llava": LLAVA_SPECIALS,
    "gemma3n": (
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<start_of_audio>",
    ),
}
# Gemma3n looks up its last ids in separate embeddings: three for vision, three for audio.
GEMMA_TAIL = (
    "<end_of_image>",
    "<image_soft_token>",
    "<vision_unused>",
    "<end_of_audio>",
    "<audio_soft_token>",
    "<audio_unused>",
)
# The attributes by which a processor finds its tokens on the tokenizer.
NAMED_TOKENS = {
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3n": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
    },
    "llava_next": {"image_token": "<image>"},
    "llava": {"image_token": "<image>"},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER_ASSISTANT = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_CHAT = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
CHAT_TEMPLATES = {
    "qwen2_5_vl": QWEN_CHAT,
    "qwen3_vl": QWEN_CHAT,
    "internvl": CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    "gemma3n": CHATML.replace("<|im_start|>", "<start_of_turn>")
    .replace("<|im_end|>", "<end_of_turn>")
    .replace("IMAGE", "<image_soft_token>"),
    "llava_next": USER_ASSISTANT,
    "llava": USER_ASSISTANT,
}
MODEL_CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}


# --- tokenizer and processor ---------------------------------------------------------------------------------------


def _bpe(family: str) -> Tokenizer:
    """Byte-level BPE with a fixed merge list: every word of WORDS is grown letter by letter."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = {token: index for index, token in enumerate(SPECIALS[family])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        spelled = word.replace(" ", "Ġ")  # ByteLevel's letter for a space
        for end, longer in pairwise(range(1, len(spelled) + 1)):
            pair = (spelled[:end], spelled[end])
            if spelled[:longer] not in vocabulary:
                vocabulary[spelled[:longer]] = len(vocabulary)
                merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS[family]))
    if family == "gemma3n":
        tokenizer.add_special_tokens(list(GEMMA_TAIL))
    return tokenizer


def build_tokenizer(family: str) -> Any:
    """The family's tokenizer, padding on the left."""
    if family in ("qwen2_5_vl", "qwen3_vl", "internvl"):
        named: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    elif family == "gemma3n":
        named = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
    else:
        named = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>", "unk_token": "<unk>"}
    if family in NAMED_TOKENS:
        named["extra_special_tokens"] = NAMED_TOKENS[family]
    else:
        key = "extra_special_tokens" if TRANSFORMERS_5 else "additional_special_tokens"
        named[key] = [token for token in SPECIALS[family] if "vision" in token or "_pad" in token]
    qwen_4 = family in ("qwen2_5_vl", "qwen3_vl") and not TRANSFORMERS_5
    tokenizer_class = transformers.Qwen2TokenizerFast if qwen_4 else transformers.PreTrainedTokenizerFast
    tokenizer = tokenizer_class(
        tokenizer_object=_bpe(family),
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],  # else 4.57 adds token_type_ids, which generate refuses
        **named,
    )
    tokenizer.padding_side = "left"
    return tokenizer


def _image_processor(family: str) -> Any:
    square = {"height": 56, "width": 56}
    name, settings = {
        "qwen2_5_vl": (
            "Qwen2VLImageProcessor",
            {
                "patch_size": 14,
                "merge_size": 2,
                "temporal_patch_size": 2,
                "size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16},
            },
        ),
        "qwen3_vl": (
            "Qwen2VLImageProcessor",
            {
                "patch_size": 16,
                "merge_size": 2,
                "temporal_patch_size": 2,
                "size": {"shortest_edge": 32 * 32 * 4, "longest_edge": 32 * 32 * 16},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
        ),
        "gemma3n": ("SiglipImageProcessor", {"size": {"height": 128, "width": 128}, "do_normalize": False}),
        "internvl": (
            "GotOcr2ImageProcessor",
            {"size": square, "min_patches": 1, "max_patches": 4, "crop_to_patches": True},
        ),
        "llava_next": (
            "LlavaNextImageProcessor",
            {
                "size": {"shortest_edge": 56},
                "crop_size": square,
                "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
            },
        ),
        "llava": ("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": square}),
    }[family]
    return getattr(transformers, name if TRANSFORMERS_5 else f"{name}Fast")(**settings)


def build_processor(family: str) -> Any:
    """The family's processor class around a small tokenizer; save_pretrained makes it loadable by AutoProcessor."""
    parts = {
        "image_processor": _image_processor(family),
        "tokenizer": build_tokenizer(family),
        "chat_template": CHAT_TEMPLATES[family],
    }
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_5_vl":
        video = transformers.Qwen2VLVideoProcessor(**patches)
        return transformers.Qwen2_5_VLProcessor(video_processor=video, **parts)
    if family == "qwen3_vl":
        video = transformers.Qwen3VLVideoProcessor(**patches)
        return transformers.Qwen3VLProcessor(video_processor=video, **parts)
    if family == "internvl":
        video = transformers.InternVLVideoProcessor(size={"height": 56, "width": 56})
        return transformers.InternVLProcessor(video_processor=video, image_seq_length=4, **parts)
    if family == "gemma3n":
        audio = transformers.Gemma3nAudioFeatureExtractor()
        return transformers.Gemma3nProcessor(
            feature_extractor=audio, audio_seq_length=188, image_seq_length=16, **parts
        )
    processor_class = transformers.LlavaNextProcessor if family == "llava_next" else transformers.LlavaProcessor
    return processor_class(
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, **parts
    )


# --- model ---------------------------------------------------------------------------------------------------------


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


# --- inputs --------------------------------------------------------------------------------------------------------


def random_image(seed: int = 0, width: int = 120, height: int = 90) -> Image.Image:
    """A random RGB image: coarse colour blocks, so that resizing leaves something to see."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 15 + 1, width // 15 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(15, axis=0).repeat(15, axis=1)[:height, :width])


def prompt_inputs(processor: Any, text: str, *pictures: Image.Image) -> dict[str, torch.Tensor]:
    """One user turn, images first, through the processor and its chat template."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=[prompt], images=list(pictures) or None, return_tensors="pt"))


def image_tokens(family: str) -> int:
    """How many image tokens one image of `make_inputs` has."""
    # llava_next: 16 of the whole image, 8x8 of the 2x2 tiles, and one newline for each of the 8 token rows
    return {"qwen2_5_vl": 6, "qwen3_vl": 6, "gemma3n": 16, "internvl": 4, "llava_next": 16 + 64 + 8, "llava": 16}[
        family
    ]


def make_pixels(family: str, model: Any, images: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pixel inputs of `images` images, in the form that the family's forward takes."""
    generator = torch.Generator().manual_seed(seed)
    if family in ("qwen2_5_vl", "qwen3_vl"):
        vision = model.config.vision_config
        patch = 3 * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.randn(images * 4 * 6, patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 6]] * images),
        }  # frames, rows, columns, in patches
    if family == "llava_next":
        return {
            "pixel_values": torch.randn(images, 5, 3, 56, 56, generator=generator),
            "image_sizes": torch.tensor([[112, 112]] * images),
        }
    side = 128 if family == "gemma3n" else 56
    return {"pixel_values": torch.randn(images, 3, side, side, generator=generator)}


def make_inputs(
    family: str, model: Any, batch: int = 1, n_text: int = 6, seed: int = 0, images: int = 1, gap: int = 1
) -> dict[str, torch.Tensor]:
    """Inputs for `model(**inputs)` made without a processor: `images` images in each row of random text.

    `gap` text tokens stand between two images of a row; 0 puts LLaVA's and LLaVA-NeXT's image tokens side by side
    (the other families keep their own start and end tokens between them where they have any).
    """
    config = model.config
    image_id = config.image_token_id
    generator = torch.Generator().manual_seed(seed)
    before, after = [], []
    if family in ("qwen2_5_vl", "qwen3_vl"):
        before, after = [config.vision_start_token_id], [config.vision_end_token_id]
    elif family == "gemma3n":
        before, after = [config.boi_token_id], [config.eoi_token_id]
    one = [*before, *[image_id] * image_tokens(family), *after]
    rows = []
    for _ in range(batch):
        words = torch.randint(20, 200, (n_text + gap * (images - 1),), generator=generator).tolist()
        row = words[: n_text // 2]
        for index in range(images):
            row += one
            if index < images - 1:
                row += [words.pop() for _ in range(gap)]
        rows.append(row + words[n_text // 2 :])
    ids = torch.tensor(rows)  # [B, S]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **make_pixels(family, model, batch * images, seed),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == image_id).long()
    return inputs
