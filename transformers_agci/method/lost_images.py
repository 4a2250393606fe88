"""Calls in which AGCI would find no image although the answer depends on one: an error, never a silent no-op.

And calls whose answers are not what they seem for another reason of stock's own: a warning.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transformers_agci.families import ForwardCall, image_token_id
from transformers_agci.method.forward_call import cache_of_output, forward_call
from transformers_agci.method.image_positions import image_token_mask
from transformers_agci.method.thread_state import arguments_now, stack

if TYPE_CHECKING:
    from transformers_agci.method.handle import Handle

_HOLDS_IMAGES = "_agci_holds_images"  # attribute of a cache

# Files of transformers below which a prompt may hold image tokens without images, and who calls there.
_EXCUSED = {
    "candidate_generator.py": "the draft model of assisted decoding, which is given the text alone",
    "continuous_batching": "generate_batch, which takes no images",
}

_log = logging.getLogger("transformers_agci")


def note_images_in_cache(cache: Any) -> None:
    """Remember on the cache of a call with images that they went into it."""
    if hasattr(cache, "__dict__"):
        setattr(cache, _HOLDS_IMAGES, True)


def images_went_into(output: Any) -> Any:
    """The cache in the output of a vlm, where it made or filled one."""
    parts = output if isinstance(output, tuple) else (cache_of_output(output),)
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def with_whole_images(call: ForwardCall) -> ForwardCall:
    """Undo the slicing of `generate(prefill_chunk_size=...)` where the whole prompt is one chunk.

    transformers slices the encoded images even then, and loses which tokens belong to which image. Its frame still
    holds them whole. Where there are several chunks, or no such frame, the call is returned as it is.
    """
    if not call.has_sliced_images:
        return call
    for frame in stack():
        if frame.f_code.co_name != "_prefill" or "transformers" not in frame.f_code.co_filename:
            continue
        encoded = frame.f_locals.get("mm_encoder_outputs")
        if len(frame.f_locals.get("input_chunks", ())) == 1 and isinstance(encoded, Mapping):
            return dataclasses.replace(call, encoded=encoded.get("image"))
    return call


def check_no_lost_images(vlm: Any, call: ForwardCall) -> None:
    """Raise ValueError where a prompt of several tokens holds image tokens but no image came with it.

    Not where a user typed the image token, which stock takes for a word: that is shorter than any image. Nor in later
    calls on a cache that images went into: prompt lookup proposes pieces of the prompt, image tokens among them, as an
    answer. A draft model and generate_batch are warned of: they lose the images by design.
    """
    if call.input_ids is None or _holds_images(call.cache):
        return
    mask = call.input_ids == image_token_id(vlm.config)
    if not bool(mask.any()) or _is_typed(mask):
        return
    excused = next((who for name, who in _EXCUSED.items() if _is_called_from(name)), None)
    if excused is None:
        raise ValueError(
            "This prompt holds image tokens, but no images came with it: AGCI has nothing to inject. "
            "If prefill_chunk_size is set, leave it unset; otherwise pass the processor's pixel_values."
        )
    _log.warning(
        "AGCI: a prompt holds image tokens without images and is answered by stock: it comes from %s.", excused
    )


def check_same_tokens(vlm: Any, ours: Any, call: ForwardCall, shape: Sequence[int]) -> None:
    """Raise ValueError where the images no longer stand where they were found; other text may stand there.

    Args:
        ours: the pre-hook of the vlm that was given `call`. One behind it may have given the vlm other tokens.
        shape: [B, S] of what the decoder was given.
    """
    tokens = call.inputs_embeds if call.input_ids is None else call.input_ids
    same = tokens is None or tuple(tokens.shape[:2]) == tuple(shape)
    if same and next(reversed(vlm._forward_pre_hooks.values()), ours) is not ours:
        given = arguments_now(vlm)
        same = given is None or _images_stand_alike(vlm, call, forward_call(vlm, *given))
    if not same:
        raise ValueError(
            f"{type(vlm).__name__}: another hook changed the sequence after the images had been found in it, so that "
            "they may stand elsewhere. Register that hook first."
        )


def _images_stand_alike(vlm: Any, call: ForwardCall, other: ForwardCall) -> bool:
    if call.input_ids is other.input_ids and call.inputs_embeds is other.inputs_embeds:
        return True
    before, after = (image_token_mask(vlm, each) for each in (call, other))
    return torch.equal(before, after.to(before.device))


def merged_embeds_error(vlm: nn.Module) -> ValueError:
    """Image features were made, and then a prompt came as inputs_embeds without its images."""
    return ValueError(
        f"{type(vlm).__name__} was given inputs_embeds without pixel_values, after image features had been made "
        "outside of it: AGCI cannot tell where they were merged in, and would inject nothing. Give the model input_ids "
        "and pixel_values and let it merge them (ms-swift's own merging in training and ColQwen2 cannot be served); "
        "for a prompt without images give input_ids, or set lambda to 0."
    )


def bypass_error(decoder: nn.Module) -> ValueError:
    """Image features were made, and then the decoder was called around the vlm."""
    return ValueError(
        f"{type(decoder).__name__} was called directly after image features had been made: AGCI cannot tell where "
        "they were merged in, and would inject nothing. Call the model itself, not its .forward, with input_ids and "
        "pixel_values; or set lambda to 0."
    )


def refuse_tracing() -> None:
    """Raise ValueError under torch.jit.trace: the trace would keep this prompt's image positions for every other."""
    is_tracing: Any = torch.jit.is_tracing
    if is_tracing():
        raise ValueError(
            "torch.jit.trace, and exporters that use it, keep where the images of the traced prompt stand: in any "
            "other prompt the wrong tokens would be changed. Set the method's strength to 0 to trace the stock model."
        )


def warn_of_mates(handle: "Handle", call: ForwardCall) -> None:
    """Warn, once, where prompts share a call although stock's own output then depends on which ones do.

    Copies of one prompt (beams, num_return_sequences) are no mates.
    """
    given = call.inputs_embeds if call.input_ids is None else call.input_ids
    if not handle.family.alone or handle.warned_of_mates or given is None or bool((given == given[:1]).all()):
        return
    handle.warned_of_mates = True
    _log.warning(
        "AGCI: transformers' own output of %s for a prompt depends on the others in its batch, with and without AGCI: "
        "give it one prompt per call.",
        handle.family.name,
    )


def _holds_images(cache: Any) -> bool:
    return hasattr(cache, _HOLDS_IMAGES) and int(cache.get_seq_length()) > 0  # a reset cache is empty


def _is_typed(mask: torch.Tensor) -> bool:
    """Whether image tokens [B, S] stand alone everywhere, as typed ones do: an image has several in a row."""
    return not bool((mask[:, 1:] & mask[:, :-1]).any())


def _is_called_from(name: str) -> bool:
    return any(name in frame.f_code.co_filename for frame in stack())
