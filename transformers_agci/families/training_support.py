"""What fine-tuning needs to know of a family: its prompt format, how many tokens an image has, what LoRA must leave.

Prompt formats are those that LLaMA-Factory 0.9.5 writes under the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers_agci.families.declaration import WORKS, Lacks, Works

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Template:
    """One prompt format. `{content}` stands for the turn's text, `{tokens}` for an image's run of `image_token`.

    A conversation is encoded piece by piece, never as one string: the beginning, the system text, then question and
    answer of every turn.

    Attributes:
        name: the recipe's `template`.
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


CHATML: dict[str, Any] = {
    "user": "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
    "assistant": "{content}<|im_end|>\n",
    "system": "<|im_start|>system\n{content}<|im_end|>\n",
}

# What makes one image's pixel inputs; not quick, so only who needs it calls it.
Pixels = Callable[[], Mapping[str, Any]]
# processor, config, pixels, size -> image tokens
CountTokens = Callable[[Any, Any, Pixels, Size], int]
# (whether a size is out of bounds, the size that it is resized to)
Bound = tuple[Callable[[Size], bool], Callable[[Size], Size]]

ONE_VIEW = Lacks("the model sees an image whole")


@dataclass(frozen=True)
class TrainingSupport:
    """How a family is fine-tuned.

    Attributes:
        templates: its prompt formats, the first one being the usual.
        count_tokens: how many image tokens an image has in the prompt.
        further_bounds: sizes that the image processor refuses, beyond the recipe's own bounds.
        tiles: settings of the image processor where the recipe asks for tiles (crop_to_patches).
        lora_on_all_layers: whether every linear layer of the decoder may get an adapter.
        gradient_checkpointing: whether a layer's forward can be run a second time.
        pixel_inputs: the image processor's outputs that the model takes.
    """

    templates: tuple[Template, ...]
    count_tokens: CountTokens
    further_bounds: tuple[Bound, ...] = ()
    tiles: Mapping[str, Any] | Lacks = ONE_VIEW
    lora_on_all_layers: Works | Lacks = WORKS
    gradient_checkpointing: Works | Lacks = WORKS
    pixel_inputs: tuple[str, ...] = ("pixel_values", "image_grid_thw", "image_sizes")


def count_sequence_length(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    """A fixed number per image, which the processor says."""
    return int(processor.image_seq_length)
