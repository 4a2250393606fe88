"""Prompt formats of fine-tuning, one row each, as LLaMA-Factory 0.9.5 writes them under the same names.

A conversation is encoded piece by piece, never as one string: the beginning, the system text, then question and answer
of every turn. `{content}` stands for the turn's text, `{tokens}` for an image's run of `image_token`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES


@dataclass(frozen=True)
class Template:
    """One prompt format.

    Attributes:
        name: the recipe's `template`.
        family: the `model_type` whose checkpoints speak it.
        user: the question with everything up to where the answer begins.
        assistant: the answer with its end; all of it is learnt.
        system: the system text's frame.
        image: what an image's mark <image> becomes.
        image_token: the placeholder that an image's tokens replace in the decoder.
        default_system: the system text where the data has none; "": none.
        begins_with_bos: the tokenizer's bos token begins the conversation, if there is one.
        ends_with_eos: the tokenizer's eos token ends every answer.
        system_in_user: the system text begins the first question instead of standing before it.
        thought: an empty thought, put before (and learnt with) every answer that has none.
        words: special words of the format that must be one token each.
    """

    name: str
    family: str
    user: str
    assistant: str
    system: str
    image: str
    image_token: str
    default_system: str = ""
    begins_with_bos: bool = False
    ends_with_eos: bool = False
    system_in_user: bool = False
    thought: str = ""
    words: tuple[str, ...] = ()


_CHATML: dict[str, Any] = {
    "user": "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
    "assistant": "{content}<|im_end|>\n",
    "system": "<|im_start|>system\n{content}<|im_end|>\n",
}
_QWEN_VL: dict[str, Any] = {
    **_CHATML,
    "image": "<|vision_start|>{tokens}<|vision_end|>",
    "image_token": "<|image_pad|>",
    "words": ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
}
_LLAVA: dict[str, Any] = {"image": "{tokens}", "image_token": "<image>"}

_ROWS = (
    Template("qwen2_vl", "qwen2_5_vl", default_system="You are a helpful assistant.", **_QWEN_VL),
    Template("qwen3_vl", "qwen3_vl", thought="<think>\n\n</think>\n\n", **_QWEN_VL),
    Template("qwen3_vl_nothink", "qwen3_vl", **_QWEN_VL),
    Template(
        "gemma3n",
        "gemma3n",
        user="<start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n",
        assistant="{content}<end_of_turn>\n",
        system="{content}\n\n",
        image="\n\n<start_of_image>{tokens}<end_of_image>\n\n",
        image_token="<image_soft_token>",
        begins_with_bos=True,
        system_in_user=True,
        words=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
    ),
    Template(
        "intern_vl",
        "internvl",
        **_CHATML,
        image="<img>{tokens}</img>",
        image_token="<IMG_CONTEXT>",
        # InternVL's own: "You are InternVL, a multimodal model by Shanghai AI Laboratory, Tsinghua and partners"
        default_system="你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
        begins_with_bos=True,
        words=("<|im_start|>", "<|im_end|>", "<img>", "</img>"),
    ),
    Template(
        "llava_next_mistral",
        "llava_next",
        user="[INST] {content}[/INST]",
        assistant=" {content}",
        system="{content}\n\n",
        begins_with_bos=True,
        ends_with_eos=True,
        system_in_user=True,
        **_LLAVA,
    ),
    Template(
        "llava",
        "llava",
        user="USER: {content} ASSISTANT:",
        assistant="{content}",
        system="{content}",
        default_system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        ends_with_eos=True,
        **_LLAVA,
    ),
)

TEMPLATES: Mapping[str, Template] = MappingProxyType({template.name: template for template in _ROWS})


def template_for(name: str, model_type: str) -> Template:
    """The template of this name, if it belongs to the family; InputError names the family's own otherwise."""
    own = " or ".join(template.name for template in _ROWS if template.family == model_type)
    family = SUPPORTED_FAMILIES[model_type].name
    if name not in TEMPLATES:
        near = get_close_matches(name, TEMPLATES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"The template {name!r} is not known; {hint}{family} ({model_type}) takes {own}.")
    template = TEMPLATES[name]
    if template.family != model_type:
        raise InputError(
            f"The template {name!r} belongs to {SUPPORTED_FAMILIES[template.family].name}, but the "
            f"checkpoint is a {family} ({model_type}); take {own}."
        )
    return template
