"""What the attention layers of one call do: which of its columns are image tokens, and what was decided before.

Which keys are image tokens travels on the cache, column by column, as the positions do (positions.py).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from transformers_agci.method.forward_call import cache_of_call
from transformers_agci.method.image_positions import ImagePositions
from transformers_agci.method.rivals.call_state import state
from transformers_agci.method.rivals.positions import past_length

if TYPE_CHECKING:
    from transformers_agci.method.rivals.declaration import Grid
    from transformers_agci.method.rivals.handle import RivalHandle


@dataclass
class Plan:
    """What the attention layers of one call of the decoder shall do.

    Attributes:
        keys: [B, L] bool, the image tokens among all columns up to the end of this call.
        past: columns that were there before.
        last: [B] the last attended column of this call.
        owners: [B, L] long, the number of the image that a column belongs to, 0 for none; for a mask.
        ranks: [B, L] long, each image token's rank, for a mask.
        weights: [B] what AdaptVis's first pass chose.
        bias: per layer [B, L] float32, what UAC adds to the scores of text.
        seen: where the attention of `last` on all keys is recorded, per layer [B, L]; None: it is not.
    """

    handle: "RivalHandle"
    keys: torch.Tensor
    past: int
    last: torch.Tensor
    owners: torch.Tensor | None = None
    ranks: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    bias: dict[int, torch.Tensor] | None = None
    seen: dict[int, torch.Tensor] | None = None
    made: dict[Any, torch.Tensor] = field(default_factory=dict)  # masks, by what they were made of

    @property
    def length(self) -> int:
        """Tokens of this call."""
        return self.keys.shape[1] - self.past


def plan_of_call(
    handle: "RivalHandle",
    kwargs: dict[str, Any],
    shown: torch.Tensor,
    images: "list[tuple[ImagePositions, Grid | None]]",
) -> Plan | None:
    """What the attention layers of the coming call shall do; None where no image is in sight."""
    cache = cache_of_call(kwargs)
    past, (rows, length) = past_length(cache), shown.shape[:2]
    earlier = kept_columns(cache, past, rows)
    if not images and earlier is None:
        return None
    keys = torch.zeros(rows, past + length, dtype=torch.bool, device=shown.device)
    owners, ranks = keys.long(), keys.long()
    bias = dict(state.bias or {})
    if earlier is not None:
        keys[:, :past] = earlier.keys
        for layer, known in (earlier.bias or {}).items():
            added = torch.zeros(rows, length, device=shown.device) if layer not in bias else bias[layer]
            bias[layer] = torch.cat([known, added], dim=1)
    for number, (image, grid) in enumerate(images, 1):
        place = image.row, past + image.index(shown.device)
        keys[place], owners[place] = True, number
        if handle.rival.mask is not None and grid is not None:
            ranks[place] = torch.tensor(list(handle.rival.mask.ranks(grid)), device=shown.device)
    ringed = handle.rival.mask is not None and bool(images)
    return Plan(
        handle,
        keys,
        past,
        last_columns(kwargs.get("attention_mask"), past, rows, length, shown.device),
        owners=owners if ringed else None,
        ranks=ranks if ringed else None,
        weights=state.weights,
        bias={layer: _widened(part, past + length) for layer, part in bias.items()} or None,
        seen=state.seen,
    )


def _widened(part: torch.Tensor, length: int) -> torch.Tensor:
    """[B, n] with zeros before it, as many as [B, length] lacks."""
    return nn.functional.pad(part, (length - part.shape[1], 0))


def last_columns(mask: Any, past: int, rows: int, length: int, device: Any) -> torch.Tensor:
    """[B] the last attended column of a call."""
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] >= past + length:
        shown = (mask[:, past : past + length] != 0).long().flip(dims=[1])
        return length - 1 - shown.argmax(dim=1)
    return torch.full((rows,), length - 1, device=device)


_COLUMNS = "_agci_rival_columns"  # attribute of a cache: its columns as of its last call of several tokens


class Columns(NamedTuple):
    """What earlier calls left for their columns: which are image tokens [B, past], and UAC's bias per layer."""

    keys: torch.Tensor
    bias: dict[int, torch.Tensor] | None


def kept_columns(cache: Any, past: int, rows: int) -> Columns | None:
    """What was kept on a cache of `past` columns, for `rows` rows; None where no image token is among them."""
    found: Columns | None = getattr(cache, _COLUMNS, None)
    if found is None or past == 0 or not bool(found.keys[:, :past].any()):
        return None

    def cut(columns: torch.Tensor) -> torch.Tensor:
        if len(columns) != rows and rows > len(columns):
            columns = columns.repeat_interleave(rows // len(columns), dim=0)
        return nn.functional.pad(columns[:, :past], (0, max(0, past - columns.shape[1])))

    bias = None if found.bias is None else {layer: cut(part) for layer, part in found.bias.items()}
    return Columns(cut(found.keys), bias)


def keep_columns(cache: Any, plan: Plan) -> None:
    """Keep on the cache what later calls need of this one's columns."""
    if hasattr(cache, "__dict__"):
        setattr(cache, _COLUMNS, Columns(plan.keys, plan.bias))
