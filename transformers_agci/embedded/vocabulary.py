"""The embedded model's tokenizer: a byte-level BPE with Qwen's special tokens, trained on the atlas's names."""

from collections.abc import Sequence
from typing import Any

from transformers_agci.experiments.position.questions import PROMPT

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
SIZE = 1536  # tokens, the special ones included
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
        vocab_size=SIZE,
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
    other = "What is this? Describe the image. Is there an image of it? A, B, C, D, E: answer with one letter or word."
    lines = [prompt] * 60 + [other] * 20
    for name in names:
        lines += [f"Text: {name}\n", f"{name}, {name}", f" a {name}", name] * 3
    return lines
