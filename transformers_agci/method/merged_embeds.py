"""Prompts that come as inputs_embeds without images: text, or text into which somebody else has merged image features.

A row of text equals a row of the embedding table; an image feature does not, and neither does a learnt prompt. So it is
the embeddings that tell, whichever thread made the features, at whichever lambda, and whatever was called since.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers_agci.method.handle import Handle

_log = logging.getLogger("transformers_agci")

_CHUNK = 8192  # rows of the embedding table at a time: they are as wide as the decoder
_KEY_BYTES = 8  # the first columns of a row, read as one number


def merged_features(handle: "Handle", vlm: Any, embeds: torch.Tensor, marked: bool) -> bool:
    """Whether inputs_embeds [B, S, D] hold image features that this model made.

    Args:
        marked: the answer where the table cannot be read (sharded by FSDP): features were made in this thread, and no
            prompt has come since.
    """
    try:
        foreign = foreign_rows(vlm, embeds)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return marked
    if foreign < 2:
        return False
    if handle.made_features and not handle.learns_prompts():
        return True
    if not handle.warned_of_rows:
        handle.warned_of_rows = True
        _log.warning(
            "AGCI: a prompt came as inputs_embeds without images, and %d of its rows are the embedding of no token. If "
            "they are image features, nothing is injected: give the model input_ids and pixel_values.",
            foreign,
        )
    return False


def merged_features_in_layer(handle: "Handle", vlm: Any, hidden: torch.Tensor) -> bool:
    """Whether the hidden states [B, ..., D] that a decoder's first layer is given hold features among text.

    They are the decoder's input in most families. Granite's scales that; Gemma3n gives [4, B, S, D], of which the
    first of the four is the input; GLM-5-Next gives [B, S, 2, D], twice the input. So a part hidden[i] tells only where
    tokens of text are found in it; a row of zeros (padding), which scaling leaves as it is, tells nothing.
    """
    if handle.learns_prompts():
        return False
    try:
        foreign = _are_foreign(vlm, hidden)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return False
    telling = hidden.ne(0).any(-1)
    text = (telling & ~foreign).flatten(1).any(1)
    return int((telling & foreign)[text].sum()) >= 2


def foreign_rows(vlm: Any, embeds: torch.Tensor) -> int:
    """How many rows of [B, S, D] are the embedding of no token."""
    return int(_are_foreign(vlm, embeds).sum())


@torch.no_grad()
def _are_foreign(vlm: Any, embeds: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [...] bool: which rows are the embedding of no token.

    Rows are told apart by their first 8 bytes (4 columns in bfloat16, 2 in float32): that two of them agree in these
    and nowhere else does not happen.
    """
    table = vlm.get_input_embeddings()
    rows = _keys(embeds.flatten(0, -2))
    missing = torch.ones_like(rows, dtype=torch.bool)
    for start in range(0, table.num_embeddings, _CHUNK):
        stop = min(start + _CHUNK, table.num_embeddings)
        ids = torch.arange(start, stop, device=table.weight.device)[None]
        missing &= ~torch.isin(rows, _keys(table(ids)[0].to(embeds.device, embeds.dtype)))
    return missing.view(embeds.shape[:-1])


def _keys(rows: torch.Tensor) -> torch.Tensor:
    """[N, D] -> [N] int64."""
    columns = _KEY_BYTES // rows.element_size()
    return rows[:, :columns].contiguous().view(torch.int64).flatten()
