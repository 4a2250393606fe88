"""Where the tokens of each image stand in the sequences of one forward call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from transformers_agci.families import Family, ForwardCall


class ImageSpan(NamedTuple):
    """Tokens start..stop-1 of sequence `row` are the tokens of one image."""

    row: int
    start: int
    stop: int


def image_token_mask(owner: Any, call: ForwardCall) -> torch.Tensor:
    """[B, S] bool, true at image tokens.

    With inputs_embeds in place of ids an image token is a row equal to the image token's embedding, as stock finds it.
    """
    token_id = owner.config.image_token_id
    if call.input_ids is not None:
        return call.input_ids == token_id
    if call.inputs_embeds is None:
        raise ValueError("Give input_ids or inputs_embeds along with the images.")
    embeds = call.inputs_embeds
    marker = owner.get_input_embeddings()(torch.tensor(token_id, device=embeds.device))
    return (embeds == marker).all(dim=-1)


def image_spans(owner: Any, family: Family, call: ForwardCall, mask: torch.Tensor) -> list[ImageSpan]:
    """The images of a call in the order of their tokens, images that the attention mask hides left out.

    Raises:
        ValueError: the tokens do not divide into the images of the call, or an image is cut by chunked prefill.
    """
    _refuse_cut_images(call)
    runs = _runs(mask)
    total = sum(run.stop - run.start for run in runs)
    lengths = family.lengths(owner.config, call, total) if total else None
    spans = runs if lengths is None else _divide(runs, lengths)
    visible = _visible(call.attention_mask, mask.shape)
    if visible is None or not spans:
        return spans
    # A training framework may give a text-only batch a dummy image that no token attends to.
    firsts = visible[[span.row for span in spans], [span.start for span in spans]].tolist()
    return [span for span, seen in zip(spans, firsts, strict=True) if seen]


_HOLDS_IMAGES = "_agci_holds_images"  # attribute of a cache


def note_images_in_cache(call: ForwardCall) -> None:
    """Remember on the cache of a call with images that they went into it."""
    if hasattr(call.past_key_values, "__dict__"):
        setattr(call.past_key_values, _HOLDS_IMAGES, True)


def refuse_lost_images(owner: Any, call: ForwardCall) -> None:
    """Raise ValueError where a prompt holds image tokens but no image came with it.

    Some versions' chunked prefill loses the pixels that way and answers as if nothing had happened. Single tokens are
    not looked at: they are decoding steps, and looking would make the device wait. Nor are later calls on a cache that
    images went into: prompt lookup proposes pieces of the prompt, image tokens among them, as an answer.
    """
    if call.input_ids is None or call.input_ids.shape[-1] == 1 or hasattr(call.past_key_values, _HOLDS_IMAGES):
        return
    if bool((call.input_ids == owner.config.image_token_id).any()):
        raise ValueError(
            "This prompt holds image tokens, but no images came with it: AGCI has nothing to inject. "
            "If prefill_chunk_size is set, leave it unset; otherwise pass the processor's pixel_values."
        )


def _runs(mask: torch.Tensor) -> list[ImageSpan]:
    padded = nn.functional.pad(mask, (1, 1))
    edges = (padded[:, 1:] != padded[:, :-1]).nonzero().tolist()  # (row, column): where runs begin and end, in turn
    return [ImageSpan(row, start, stop) for (row, start), (_, stop) in zip(edges[::2], edges[1::2], strict=True)]


def _divide(runs: list[ImageSpan], lengths: Sequence[int]) -> list[ImageSpan]:
    spans: list[ImageSpan] = []
    remaining = iter(lengths)
    for row, start, stop in runs:
        position = start
        while position < stop:
            length = next(remaining, None)
            if length is None or length <= 0 or position + length > stop:
                raise _mismatch(runs, lengths)
            spans.append(ImageSpan(row, position, position + length))
            position += length
    if next(remaining, None) is not None:
        raise _mismatch(runs, lengths)
    return spans


def _mismatch(runs: list[ImageSpan], lengths: Sequence[int]) -> ValueError:
    return ValueError(
        f"The image tokens of this call stand in runs of {[run.stop - run.start for run in runs]}, which do not divide "
        f"into its images of {list(lengths)} tokens. A chunked prefill or a truncated prompt can cut an image: "
        "leave prefill_chunk_size unset and keep every image whole."
    )


def _refuse_cut_images(call: ForwardCall) -> None:
    # Chunked prefill hands each chunk a slice of the encoded images, which carries the pooled features only.
    if call.encoded is not None and getattr(call.encoded, "last_hidden_state", None) is None:
        raise ValueError(
            "AGCI needs each image whole, but chunked prefill (prefill_chunk_size) cuts images: leave it unset."
        )


def _visible(attention_mask: object, shape: torch.Size) -> torch.Tensor | None:
    """[B, S] bool of the tokens that are attended to, or None where the mask does not say so token by token."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2 or len(attention_mask) != shape[0]:
        return None
    return attention_mask[:, -shape[1] :] != 0
