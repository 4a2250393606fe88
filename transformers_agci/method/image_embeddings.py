"""The image tokens of a call as the decoder would receive them without AGCI."""

import threading
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import ForwardCall, decoder_of, family_of, find_vlm
from transformers_agci.method.forward_call import embeds_of, forward_call
from transformers_agci.method.image_positions import image_positions, image_token_mask


def image_embeddings(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The image tokens of a call before injection: one [N_i, D] tensor per image, in the order of the prompt.

    Runs the vision side of `model(**inputs)` and stops before the decoder. The form is the same for all families;
    LLaVA-NeXT's tensors hold its newline tokens. Gradients flow unless the caller turns them off.

    Raises:
        InputError: unsupported model, or inputs without an image.

    >>> from PIL import Image
    >>> from transformers_agci import image_embeddings, load
    >>> model, processor = load().loaded.model, load().loaded.processor
    >>> chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    >>> text = processor.apply_chat_template(chat, add_generation_prompt=True)
    >>> inputs = processor(text=text, images=[Image.new("RGB", (252, 252))], return_tensors="pt")
    >>> tuple(len(tokens) for tokens in image_embeddings(model, inputs))
    (81,)
    """
    family, vlm = family_of(model), cast(Any, find_vlm(model))
    seen, embeds = _before_decoder(model, vlm, inputs)
    if not seen or embeds is None:
        raise InputError("These inputs hold no image: give the processor's output with pixel_values.")
    return [image.take(embeds) for image in image_positions(vlm, family, *seen[0])]


def _before_decoder(
    model: nn.Module, vlm: Any, inputs: Mapping[str, Any]
) -> tuple[list[tuple[ForwardCall, torch.Tensor]], torch.Tensor | None]:
    """The calls of the vlm with images and their image tokens, and what its decoder was about to receive."""
    thread = threading.get_ident()
    seen: list[tuple[ForwardCall, torch.Tensor]] = []

    def before_vlm(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = forward_call(module, args, kwargs)
        if threading.get_ident() == thread and call.has_images:
            seen.append((call, image_token_mask(module, call)))

    def before_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            raise _Reached(embeds_of(module, args, kwargs))

    hooks = [
        vlm.register_forward_pre_hook(before_vlm, with_kwargs=True),
        # First in line, so that an attached AGCI has not changed the tokens yet.
        decoder_of(vlm).register_forward_pre_hook(before_decoder, with_kwargs=True, prepend=True),
    ]
    embeds = None
    try:
        model(**inputs)
    except _Reached as reached:
        embeds = reached.embeds
    finally:
        for hook in hooks:
            hook.remove()
    return seen, embeds


class _Reached(Exception):
    """The decoder was reached; carries what it was about to receive."""

    def __init__(self, embeds: torch.Tensor | None) -> None:
        super().__init__()
        self.embeds = embeds
