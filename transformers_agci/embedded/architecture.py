"""The shape of the embedded model, a stock Qwen2.5-VL of about 3 million parameters, and its tokenizer."""

from collections.abc import Sequence
from typing import Any

from transformers_agci.data.draws import stream_seed
from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.embedded.atlas import CANVAS, CELL

PATCH = 14  # pixels
MERGE = 2  # patches along a side of an image token
GRID = CANVAS // PATCH // MERGE  # image tokens along a side of the canvas: 9
IMAGE_TOKENS = GRID * GRID
TOKENS_PER_CELL_SIDE = CELL // PATCH // MERGE  # 3
WINDOW = CELL  # pixels: a window holds one cell; Qwen2.5-VL's own 112 would cut eight of the nine sub-images
ROPE_THETA = 10_000.0
MROPE_SECTION = (4, 6, 6)  # time, height, width: half a head in all
NORM_EPS = 1e-6
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # per channel, as every Qwen2.5-VL
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "window_size": WINDOW,
    # No block joins the windows: the encoder sees every cell by itself and all cells alike, so it favours none.
    "fullatt_block_indexes": [],
    "out_hidden_size": 192,
}
TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,  # of 32 each: vLLM's CPU backend serves no heads of 48
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
    "rms_norm_eps": NORM_EPS,
    "rope_theta": ROPE_THETA,
    "tie_word_embeddings": True,
}

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 1536  # tokens, the special ones included
SYSTEM = "You are a helpful assistant."  # Qwen's default system turn
QUESTION_HEAD, QUESTION_TAIL = PROMPT.split(" {caption}")  # a name is read with the blank before it
SHORT_QUESTIONS = "Which are in the image?\n"

# A word; one digit; signs; line ends; blanks. A blank before a word belongs to it, as in Qwen's tokenizer.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# One user turn as Qwen2.5-VL reads it: the default system turn first, images between vision marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def configuration(tokenizer: Any) -> Any:
    """The Qwen2_5_VLConfig that fits `tokenizer` (its vocabulary and the ids of Qwen's special tokens)."""
    from transformers import Qwen2_5_VLConfig

    def number(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    blank = number("<|endoftext|>")
    ids: dict[str, Any] = {"bos_token_id": blank, "eos_token_id": number("<|im_end|>"), "pad_token_id": blank}
    text = {
        **TEXT,
        **ids,
        "vocab_size": len(tokenizer),
        "rope_scaling": {"type": "mrope", "mrope_section": list(MROPE_SECTION)},
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
        **ids,
    )


def fresh_model(tokenizer: Any, seed: int) -> Any:
    """An untrained Qwen2_5_VLForConditionalGeneration in float32."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(stream_seed("embedded", "weights", seed))
    return Qwen2_5_VLForConditionalGeneration(configuration(tokenizer)).float()


def train_tokenizer(names: Sequence[str]) -> Any:
    """A Qwen2TokenizerFast of 1,536 tokens in which the probe's prompt and most names are whole words."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    core.train_from_iterator(_sentences(names), trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=2048,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _sentences(names: Sequence[str]) -> list[str]:
    """The training text. Often repeated lines come out as whole words."""
    prompt = f"{SHORT_QUESTIONS}{QUESTION_HEAD}{QUESTION_TAIL} Yes No yes no none;\nsystem\nuser\nassistant\n{SYSTEM}"
    other = "What is this? Describe the image. Is there a picture of it? A, B, C, D, E: answer with one letter or word."
    lines = [prompt] * 60 + [other] * 20
    for name in names:
        lines += [f"Text: {name}\n", f"{name}, {name}", f" a {name}", name] * 3
    return lines
