"""The decoder once per common beginning: several questions about one image share its keys and values."""

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache

from transformers_agci.families import decoder_of, find_vlm

# How the decoder's arguments lie along the prompt: the dimension that has its length.
PROMPT_DIMENSION = {
    "inputs_embeds": 1,
    "per_layer_inputs": 1,
    "position_ids": -1,
    "cache_position": 0,
    "visual_pos_masks": 1,
}
OTHERWISE_CUT = ("attention_mask", "deepstack_visual_embeds")
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")  # another prompt length turns the same keys another way


@dataclass(frozen=True)
class Prompts:
    """The prompts of a coming `generate` call, on the CPU and padded on the left.

    keys  what stands before the questions, one per row: equal keys mean equal images in equal order
    ids   [B, S]
    mask  [B, S], 1 for tokens and 0 for padding
    """

    keys: tuple[Hashable, ...]
    ids: torch.Tensor
    mask: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:  # [B], tokens
        return self.mask.sum(dim=1)


class _Record(NamedTuple):
    prompts: Prompts
    layers: list[tuple[torch.Tensor, torch.Tensor] | None]  # keys and values [B, heads, S, D]; None: it has none


class _Reuse(NamedTuple):
    """How a coming batch follows from the record: its first `begin` columns are there already."""

    begin: int
    rows: torch.Tensor  # [B], the record's row for each
    columns: torch.Tensor  # [B, begin], the record's column for each; any, where the coming prompt is padding


class PrefixReplay:
    """While entered, the decoder computes only what a prompt does not share with one that was recorded.

        with PrefixReplay(model) as prefix:
            prefix.about(prompts, keep=True)     # the coming generate() call; its keys and values are kept
            model.generate(**inputs)
            prefix.about(other_prompts)          # about the same images, at the same lambda
            model.generate(**other_inputs)       # the decoder sees the question's tokens only
            prefix.forget()                      # before another lambda, and when the images are done with

    The whole prompt is still embedded, merged with its image features and injected by the model itself; the decoder
    then starts where the prompt begins to differ, on the recorded keys and values: the same sums in another order,
    equal to rounding. Where that cannot be (a sliding window that has forgotten the beginning, another kind of cache,
    an argument this class does not know) the decoder computes everything.
    """

    def __init__(self, model: Any) -> None:
        owner: Any = find_vlm(model)
        self.decoder: nn.Module = decoder_of(owner)
        self.prefill_tokens = 0  # prompt tokens that went through the decoder, padding left out
        self.replayed_tokens = 0  # prompt tokens that did not have to
        self._coming: Prompts | None = None
        self._keep = False
        self._record: _Record | None = None
        self._works = _rope_type(owner.config) not in LENGTH_DEPENDENT_ROPE

    def about(self, prompts: Prompts | None, keep: bool = False) -> None:
        """Name the prompts of the coming `generate` call; None: neither record nor replay it."""
        self._coming, self._keep = prompts, keep

    def forget(self) -> None:
        self._record = self._coming = None

    def __enter__(self) -> "PrefixReplay":
        # The instance, never the class. accelerate's offloading puts a forward there, too, which is put back.
        self._found = self.decoder.__dict__.get("forward")
        original: Any = self.decoder.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            coming, self._coming = self._coming, None  # the first call after `about` is the prefill
            if coming is None:
                return original(*args, **kwargs)
            reuse = self._reuse(coming, args, kwargs)
            if reuse is not None and self._record is not None:
                _fill(kwargs["past_key_values"], self._record, reuse)
                self.prefill_tokens += int(coming.mask[:, reuse.begin :].sum())
                self.replayed_tokens += int(coming.mask[:, : reuse.begin].sum())
                return original(*args, **_after(kwargs, reuse.begin))
            output = original(*args, **kwargs)
            self.prefill_tokens += int(coming.mask.sum())
            if self._keep:
                self._record = _recorded(coming, kwargs.get("past_key_values"))
            return output

        self.decoder.__dict__["forward"] = forward
        return self

    def __exit__(self, *_: object) -> None:
        if self._found is None:
            self.decoder.__dict__.pop("forward", None)
        else:
            self.decoder.__dict__["forward"] = self._found
        self.forget()

    def _reuse(self, coming: Prompts, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Reuse | None:
        """How the coming call can build on the record, or None."""
        if self._record is None or not self._works or args or not _known(kwargs, coming.ids.shape[1]):
            return None
        return _overlap(self._record.prompts, coming)


def _rope_type(config: Any) -> str | None:
    text = config.get_text_config()
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return scaling.get("rope_type", scaling.get("type"))


def _overlap(recorded: Prompts, coming: Prompts) -> _Reuse | None:
    """Where the coming prompts can go on from the recorded ones: in one column for all.

    All prompts end in the last column. The row with most of its own tokens says where the decoder must begin; for the
    others it begins within what they share.
    """
    row_of = {key: row for row, key in enumerate(recorded.keys)}
    if any(key not in row_of for key in coming.keys):
        return None
    rows = torch.tensor([row_of[key] for key in coming.keys])
    width, old_width = coming.ids.shape[1], recorded.ids.shape[1]
    lengths, old_lengths = coming.lengths, recorded.lengths[rows]
    own = [
        int(length) - _shared(recorded.ids[row, old_width - int(old) :], ids[width - int(length) :])
        for row, old, ids, length in zip(rows, old_lengths, coming.ids, lengths, strict=True)
    ]
    begin = width - max(own)
    if begin <= 0:
        return None
    # Token t of a prompt stands in column width - length + t here and in old_width - old_length + t there.
    shift = (old_width - old_lengths) - (width - lengths)  # [B]
    columns = (torch.arange(begin) + shift[:, None]).clamp(0, old_width - 1)
    return _Reuse(begin, rows, columns)


def _shared(old: torch.Tensor, new: torch.Tensor) -> int:
    """Length of the common beginning; at least one token of the new prompt is its own, whose logits are asked for."""
    length = min(len(old), len(new) - 1)
    apart = (old[:length] != new[:length]).nonzero()
    return int(apart[0]) if len(apart) else length


def _known(kwargs: Mapping[str, Any], width: int) -> bool:
    """Whether this is a prefill of the whole prompt on an empty cache whose every tensor can be cut."""
    cache, embeds = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
    if type(cache) is not DynamicCache or cache.get_seq_length() or embeds is None or embeds.shape[1] != width:
        return False
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        return False
    return all(
        name in PROMPT_DIMENSION or name in OTHERWISE_CUT
        for name, value in kwargs.items()
        if isinstance(value, torch.Tensor | list | tuple)
    )


def _recorded(prompts: Prompts, cache: Any) -> _Record | None:
    """What the prefill left in the cache, unless some layer has forgotten its beginning."""
    if type(cache) is not DynamicCache:
        return None
    layers: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:  # it uses another layer's
            layers.append(None)
        elif keys.shape[-2] == prompts.ids.shape[1]:
            layers.append((keys, values))
        else:
            return None
    return _Record(prompts, layers) if any(layers) else None


def _fill(cache: Any, record: _Record, reuse: _Reuse) -> None:
    """Put the recorded keys and values [B, heads, begin, D] into the empty cache."""
    straight = torch.equal(reuse.rows, torch.arange(len(reuse.rows))) and bool(
        (reuse.columns == torch.arange(reuse.begin)).all()
    )
    for number, layer in enumerate(record.layers):
        if layer is None:
            continue
        if straight:
            keys, values = (part[: len(reuse.rows), :, : reuse.begin] for part in layer)
        else:
            rows = reuse.rows.to(layer[0].device)
            columns = reuse.columns.to(layer[0].device)[:, None, :, None]
            keys, values = (part[rows].take_along_dim(columns, dim=2) for part in layer)
        cache.update(keys, values, number)


def _after(kwargs: Mapping[str, Any], begin: int) -> dict[str, Any]:
    """The decoder's arguments from column `begin` on; the attention mask [B, S] covers the cache, too."""
    cut = dict(kwargs)
    for name, dimension in PROMPT_DIMENSION.items():
        if cut.get(name) is not None:
            length = cut[name].shape[dimension]
            cut[name] = cut[name].narrow(dimension, begin, length - begin)
    if cut.get("deepstack_visual_embeds") is not None:  # per layer [image tokens of the batch, D], row after row
        column = kwargs["visual_pos_masks"].nonzero()[:, 1]
        cut["deepstack_visual_embeds"] = [features[column >= begin] for features in kwargs["deepstack_visual_embeds"]]
    return cut
