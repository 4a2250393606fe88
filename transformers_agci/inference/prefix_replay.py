"""The beginning that prompts share is computed once: a question goes on from the keys and values of an earlier one.

Worked example, batches 1 and 2 of vision_replay.py: two questions about each of two images. s is system text, i an
image token, t and u a question's:

    recorded in batch 1, 20 columns              a   s s s s i i i i i i i i i i i t t t t t
                                                 b   . . s s s s i i i i i i i i i i i t t t
    coming in batch 2, 22 columns            a   s s s s i i i i i i i i i i i u u u u u u u
                                             b   . . . s s s s i i i i i i i i i i i u u u u

Row a has 7 tokens of its own, row b 4; all rows must begin in one column, so the decoder begins 7 from the end, in
column 15. Row a's 15 columns before it are those of the record; row b's column c is column c - 1 there (token 0
stands in column 3 here and in column 2 there), and its last three image tokens are computed again. The empty cache is
filled with these columns, and the decoder is given columns 15 to 21 only.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache, cache_utils

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.host_values import crossing
from transformers_agci.method.forward_call import cache_of_call
from transformers_agci.method.rivals.positions import carry_over

# How the decoder's arguments lie along the prompt: the dimension that has its length.
PROMPT_DIMENSION = {
    "inputs_embeds": 1,
    "per_layer_inputs": 1,
    "position_ids": -1,
    "cache_position": 0,
    "visual_pos_masks": 1,
}
OTHERWISE_CUT = ("attention_mask", "deepstack_visual_embeds")
# Layers of a cache whose keys and values can be cut: transformers' own of full and sliding attention, and the one that
# uses another layer's. Linear and sparse attention keep more than keys, a layer of a model's own may keep anything.
CUT_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")  # another prompt length turns the same keys another way


@dataclass(frozen=True)
class Prompts:
    """The prompts of a coming `generate` call, on the CPU and padded on the left.

    keys       what stands before the questions, one per row: equal keys mean equal images in equal order
    ids        [B, S]
    mask       [B, S], 1 for tokens and 0 for padding
    positions  [3, B, S] or [B, S], of the tokens within their prompts; None where nobody asks for them
    """

    keys: tuple[Hashable, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:  # [B], tokens
        return self.mask.sum(dim=1)


class _Record(NamedTuple):
    prompts: Prompts
    layers: list[tuple[torch.Tensor, torch.Tensor] | None]  # keys and values [B, heads, S, D]; None: it has none
    cache: Any  # the one they are of: a rival notes on it where it moved the text


class Tail(NamedTuple):
    """What is left of prompts whose beginnings were recorded: T tokens behind C columns of the cache, on the device.

    ids        [B, T], padded on the left
    mask       [B, C + T], 1 for what a prompt consists of
    positions  [3, B, T] or [B, T], of the tokens within their prompts
    cache      the keys and values of the first C columns
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    cache: Any


class _Reuse(NamedTuple):
    """How a coming batch follows from the record: its first `begin` columns are there already."""

    begin: int
    rows: torch.Tensor  # [B], the record's row for each
    columns: torch.Tensor  # [B, begin], the record's column for each; any, where the coming prompt is padding


class PrefixReplay:
    """While entered, the decoder computes only what a prompt does not share with one that was recorded.

        with PrefixReplay(model) as prefix:
            prefix.set_prompts(prompts, keep=True)     # the coming generate() call; its keys and values are kept
            model.generate(**inputs)
            prefix.set_prompts(other_prompts)          # about the same images, at the same lambda
            model.generate(**other_inputs)       # the decoder sees the question's tokens only
            prefix.clear()                      # before another lambda, and when the images are done with

    The whole prompt is still embedded, merged with its image features and injected by the model itself; the decoder
    then starts where the prompt begins to differ, on the recorded keys and values: the same sums in another order,
    equal to rounding. Where that cannot be (a sliding window that has forgotten the beginning, another kind of cache,
    linear attention, a mask by which the beginning sees the question, an argument this class does not know) the decoder
    computes everything.
    """

    def __init__(self, model: Any) -> None:
        vlm: Any = find_vlm(model)
        self.decoder: nn.Module = decoder_of(vlm)
        self.prefill_tokens = 0  # prompt tokens that went through the decoder, padding excluded
        self.replayed_tokens = 0  # prompt tokens that did not have to
        self._coming: Prompts | None = None
        self._keep = False
        self._record: _Record | None = None
        self._works = _rope_type(vlm.config) not in LENGTH_DEPENDENT_ROPE

    def set_prompts(self, prompts: Prompts | None, keep: bool = False) -> None:
        """Name the prompts of the coming `generate` call; None: neither record nor replay it."""
        self._coming, self._keep = prompts, keep

    def clear(self) -> None:
        self._record = self._coming = None

    @property
    def recorded(self) -> Prompts | None:
        """The prompts whose keys and values are there."""
        return None if self._record is None else self._record.prompts

    def tail(self, coming: Sequence[Prompts], image_token: int) -> Tail | None:
        """The own tokens of the coming prompts, of several batches, on the recorded beginnings; None if that cannot be.

        In the example above, both questions of a list in one call: the cache holds columns 0 to 14, of which row b's
        first two are hidden by the mask, and 4 or 7 tokens per row are left. Each row begins where it differs, whatever
        the others do.
        """
        if self._record is None or not self._works or any(prompts.positions is None for prompts in coming):
            return None
        plan = _tail_plan(self._record.prompts, coming)
        if plan is None or bool((plan.ids == image_token).any()):
            return None
        cache = DynamicCache()
        device = last = None
        rows = plan.rows
        for number, layer in enumerate(self._record.layers):
            if layer is None:
                return None  # it uses another layer's, and decides by the length of the call which
            if layer[0].device != last:  # the layers may lie on several devices
                last, rows = layer[0].device, crossing(plan.rows, layer[0].device)
            keys, values = (part[:, :, : plan.columns].index_select(0, rows) for part in layer)
            cache.update(keys, values, number)
            device = device or last
        carry_over(self._record.cache, cache, plan.rows, plan.columns)
        self.replayed_tokens += plan.replayed
        self.prefill_tokens += plan.own
        assert device is not None
        ids, mask, positions = (crossing(part, device) for part in (plan.ids, plan.mask, plan.positions))
        return Tail(ids, mask, positions, cache)

    def __enter__(self) -> "PrefixReplay":
        # The instance, never the class. accelerate's offloading puts a forward there, too, which is put back.
        self._found = self.decoder.__dict__.get("forward")
        original: Any = self.decoder.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            coming, self._coming = self._coming, None  # the first call after `set_prompts` is the prefill
            if coming is None:
                return original(*args, **kwargs)
            reuse = self._reuse(coming, args, kwargs)
            if reuse is not None and self._record is not None:
                _fill(cache_of_call(kwargs), self._record, reuse)
                self.prefill_tokens += int(coming.mask[:, reuse.begin :].sum())
                self.replayed_tokens += int(coming.mask[:, : reuse.begin].sum())
                return original(*args, **_after(kwargs, reuse.begin))
            keep = self._keep and _known(kwargs, coming.ids.shape[1])
            output = original(*args, **kwargs)
            self.prefill_tokens += int(coming.mask.sum())
            if keep:
                self._record = _recorded(coming, cache_of_call(kwargs))
            return output

        self.decoder.__dict__["forward"] = forward
        return self

    def __exit__(self, *_: object) -> None:
        if self._found is None:
            self.decoder.__dict__.pop("forward", None)
        else:
            self.decoder.__dict__["forward"] = self._found
        self.clear()

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


class _TailPlan(NamedTuple):
    """`Tail` on the CPU, with the record's row of each prompt, the columns of the cache, and the tokens of both."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    columns: int
    replayed: int
    own: int


def _tail_plan(recorded: Prompts, coming: Sequence[Prompts]) -> _TailPlan | None:
    """Every prompt cut where it begins to differ from the recorded one about the same images."""
    row_of = {key: row for row, key in enumerate(recorded.keys)}
    width, rows, shared, own, places = recorded.ids.shape[1], [], [], [], []
    old_starts = (width - recorded.lengths).tolist()
    for prompts in coming:
        for row, key in enumerate(prompts.keys):
            if key not in row_of:
                return None
            start = prompts.ids.shape[1] - int(prompts.lengths[row])
            ids = prompts.ids[row, start:]
            common = _shared(recorded.ids[row_of[key], old_starts[row_of[key]] :], ids)
            assert prompts.positions is not None
            rows.append(row_of[key])
            shared.append(common)
            own.append(ids[common:])
            places.append(prompts.positions[..., row, start + common :])
    longest = max(map(len, own))
    starts = torch.tensor([old_starts[row] for row in rows])
    ends = starts + torch.tensor(shared)
    columns = int(ends.max())
    at = torch.arange(columns)
    pads = [longest - len(ids) for ids in own]
    return _TailPlan(
        torch.stack([nn.functional.pad(ids, (pad, 0)) for ids, pad in zip(own, pads, strict=True)]),
        torch.cat(
            [
                (at >= starts[:, None]) & (at < ends[:, None]),
                torch.arange(longest) >= torch.tensor(pads)[:, None],
            ],
            dim=1,
        ).long(),
        torch.stack([nn.functional.pad(place, (pad, 0)) for place, pad in zip(places, pads, strict=True)], dim=-2),
        torch.tensor(rows),
        columns,
        sum(shared),
        sum(map(len, own)),
    )


def _shared(old: torch.Tensor, new: torch.Tensor) -> int:
    """Length of the common beginning; at least one token of the new prompt is its own, whose logits are asked for."""
    length = min(len(old), len(new) - 1)
    apart = (old[:length] != new[:length]).nonzero()
    return int(apart[0]) if len(apart) else length


def _known(kwargs: Mapping[str, Any], width: int) -> bool:
    """Whether this is a prefill of the whole prompt on an empty cache whose every tensor can be cut."""
    cache, embeds = cache_of_call(kwargs), kwargs.get("inputs_embeds")
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
    """What the prefill left in the cache, unless a layer has forgotten its beginning or keeps a state of its end."""
    if type(cache) is not DynamicCache:
        return None
    layers: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for layer in cache.layers:
        if type(layer).__name__ not in CUT_LAYERS or type(layer).__module__ != cache_utils.__name__:
            return None
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:  # it uses another layer's
            layers.append(None)
        elif keys.shape[-2] == prompts.ids.shape[1]:
            layers.append((keys, values))
        else:
            return None
    return _Record(prompts, layers, cache) if any(layers) else None


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
        marked = kwargs["visual_pos_masks"]  # [B, S]; Qwen3-Omni of transformers 4.57: [B, S, D], as it scatters them
        column = (marked if marked.ndim == 2 else marked[..., 0]).nonzero()[:, 1]
        cut["deepstack_visual_embeds"] = [features[column >= begin] for features in kwargs["deepstack_visual_embeds"]]
    return cut
