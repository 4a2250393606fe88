"""Google's Gemma 3, 3n and 4, and PaliGemma: an image squeezed into a square, of as many tokens as any other.

Gemma 4 keeps the image's aspect ratio and has as many tokens as it has pooled patches, or, where it has no vision tower
(unified), large patches. With Gemma 3's pan and scan,
which is off by default, every crop is an image of its own: the prompt puts words between them.
"""

from collections.abc import Sequence
from typing import Any

from transformers_agci.families.declaration import Family, ForwardCall, ImageTokens, Lacks, VllmClass
from transformers_agci.families.image_tokens import EQUAL, encoded_lengths
from transformers_agci.families.reasons import NO_CHAT, NO_LAYOUT
from transformers_agci.families.token_layout import square
from transformers_agci.families.training_support import Template, TrainingSupport, count_sequence_length

_POLICIES = Lacks("it is given policies in place of questions, and answers whether an image violates them")

_GEMMA_3N = TrainingSupport(
    (
        Template(
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
    ),
    count_sequence_length,
    lora_on_all_layers=Lacks(
        "the decoder reads the weights of some linear layers itself; give lora_target: q_proj,k_proj,v_proj,o_proj"
    ),
    gradient_checkpointing=Lacks("its layers share keys and values, which a second forward of a layer does not find"),
)


def _pooled_patches(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Gemma 4: squares of patches are pooled; image_position_ids [images, patches, 2] is -1 where there is none."""
    positions = call.arguments.get("image_position_ids")
    if positions is None or call.encoded is not None:
        return encoded_lengths(call)
    pooled = config.vision_config.pooling_kernel_size**2
    lengths: list[int] = ((positions != -1).all(dim=-1).sum(dim=-1) // pooled).tolist()
    return lengths


def _patches(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Gemma 4 Unified: the same positions, of patches that the processor has pooled already."""
    positions = call.arguments.get("image_position_ids")
    if positions is None or call.encoded is not None:
        return encoded_lengths(call)
    lengths: list[int] = (positions != -1).all(dim=-1).sum(dim=-1).tolist()
    return lengths


def _crops_of_item(config: Any, tokens: int) -> list[int]:
    """Gemma 3 under vLLM, with pan and scan: the whole and each crop are images of their own, words stand between."""
    each = int(config.mm_tokens_per_image)
    return [each] * (tokens // each)


FAMILIES = (
    Family(
        "gemma3n",
        "Gemma3n",
        "google/gemma-3n-E4B-it",
        "256",
        images=EQUAL,
        layout=square,
        training=_GEMMA_3N,
        in_paper=True,
        vllm=VllmClass("Gemma3nForConditionalGeneration"),
    ),
    Family(
        "gemma3",
        "Gemma3",
        "google/gemma-3-4b-it",
        "256",
        EQUAL,
        square,
        vllm=VllmClass("Gemma3ForConditionalGeneration", images_of_item=_crops_of_item),
    ),
    Family(
        "gemma4",
        "Gemma4",
        "google/gemma-4-e2b-it",
        "about 256",
        ImageTokens(_pooled_patches),
        NO_LAYOUT,
        vllm=VllmClass("Gemma4ForConditionalGeneration"),
    ),
    Family(
        "gemma4_unified",
        "Gemma4 Unified",
        "google/gemma-4-12B-it",
        "about 256",
        ImageTokens(_patches),
        NO_LAYOUT,
        vllm=VllmClass("Gemma4UnifiedForConditionalGeneration"),
    ),
    Family(
        "paligemma",
        "PaliGemma",
        "google/paligemma-3b-pt-224",
        "256 (224 pixels)",
        EQUAL,
        square,
        NO_CHAT,
        vllm=VllmClass("PaliGemmaForConditionalGeneration"),
    ),
    Family(
        "shieldgemma2",
        "ShieldGemma 2",
        "google/shieldgemma-2-4b-it",
        "256",
        EQUAL,
        square,
        _POLICIES,
        vllm=_POLICIES,
    ),
)
