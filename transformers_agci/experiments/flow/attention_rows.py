"""Attention weights of a few rows and columns of chosen decoder layers, without the rest of the matrix.

Every layer computes its output with PyTorch's scaled dot-product attention, as ever. Chosen layers compute beside it
the weights of the wanted query positions over all keys, and keep the wanted columns averaged over the heads. For 900
image tokens in a prompt of 960, 28 layers and 40 text rows behind the image that is 28 * 40 * 900 * 4 bytes = 4 MB
kept and 28 heads * 40 * 960 * 4 bytes = 4 MB at a time; the whole matrices would be 2.9 GB in float32.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from transformers_agci.families import decoder_of, find_vlm

NAME = "agci_rows"  # under which transformers finds our attention function
_WANTED = "_agci_attention_rows"  # attribute of the attention modules that are watched


class AttentionRows:
    """While entered, records attention of `rows` (query positions) to `columns` (key positions) in `layers`.

        with AttentionRows(model, layers=[0, 3], rows=range(70, 90), columns=range(15, 60)) as recorded:
            model(**inputs)                       # one prompt, no padding
        recorded.weights                          # [2, 20, 45] float32: layers, rows, columns; mean over heads

    Decoding steps (one query) pass unrecorded.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], rows: range, columns: range) -> None:
        self._decoder: Any = decoder_of(find_vlm(model))
        self._layers = list(layers)
        self.rows, self.columns = rows, columns
        self._seen: dict[int, torch.Tensor] = {}
        self._found: Any = None

    @property
    def weights(self) -> torch.Tensor:
        """[layers, rows, columns] float32 on the CPU."""
        return torch.stack([self._seen[layer] for layer in self._layers])

    def __enter__(self) -> "AttentionRows":
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        for layer in self._layers:
            self._attention_of(layer).__dict__[_WANTED] = (self, layer)
        # The one name that decoder and layers read; the vision tower has a config of its own.
        self._found = self._decoder.config._attn_implementation
        self._decoder.config._attn_implementation = NAME
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.config._attn_implementation = self._found
        for layer in self._layers:
            self._attention_of(layer).__dict__.pop(_WANTED, None)

    def record(self, layer: int, weights: torch.Tensor) -> None:
        """Keep the weights [heads, rows, keys] of a layer's wanted rows."""
        columns = weights[..., self.columns.start : self.columns.stop]
        self._seen[layer] = columns.mean(dim=0).cpu()

    def _attention_of(self, layer: int) -> nn.Module:
        return self._decoder.layers[layer].self_attn


def _attention(
    module: nn.Module,
    query: torch.Tensor,  # [B, heads, S, D]
    key: torch.Tensor,  # [B, key heads, keys, D]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    wanted = module.__dict__.get(_WANTED)
    if wanted is not None and query.shape[2] > 1:
        recorder, layer = wanted
        recorder.record(layer, _weights(query, key, attention_mask, recorder.rows, kwargs))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, rows: range, settings: dict[str, Any]
) -> torch.Tensor:
    """Softmax weights [heads, rows, keys] float32 of the first sequence's query positions `rows`."""
    heads, length, width = query.shape[1:]
    keys = key[0].repeat_interleave(heads // key.shape[1], dim=0).float()  # [heads, keys, D]
    asked = query[0, :, rows.start : rows.stop].float()
    scaling = settings.get("scaling")
    scores = asked @ keys.transpose(1, 2) * (width**-0.5 if scaling is None else scaling)
    if settings.get("softcap") is not None:
        scores = settings["softcap"] * torch.tanh(scores / settings["softcap"])
    if mask is None:
        # No mask means causal: row i sees keys 0..i. A sliding window that cuts something comes with a mask.
        positions = torch.arange(length, device=scores.device)
        allowed = positions[None, : keys.shape[1]] <= positions[rows.start : rows.stop, None]
        return scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    shown = mask[0, :, rows.start : rows.stop, : keys.shape[1]]
    if shown.dtype == torch.bool:
        return scores.masked_fill(~shown, float("-inf")).softmax(dim=-1)
    return (scores + shown.float()).softmax(dim=-1)
