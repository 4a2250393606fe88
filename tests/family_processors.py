"""Tokenizers and processors of the six families: the real classes around a vocabulary of a few hundred words."""

from itertools import pairwise
from typing import Any

import transformers
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
