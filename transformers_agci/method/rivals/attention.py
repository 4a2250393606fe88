"""Attention with a rival in it, through transformers' AttentionInterface.

A model that a rival acts on is set to `agci_sdpa` or `agci_eager`, which call the backend that it had and change what
the rival changes: the mask before it (CCA, UAC), or one query's output behind it (AdaptVis, PAI). Layers, steps and
prompts that are not touched go to the backend as they are.

Which keys are image tokens stands in the plan of the call (plan.py). Of a sliding layer the backend gets the last
columns only, of a static cache some more: both are aligned here.
"""

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from transformers_agci.errors import CannotServe, InputError
from transformers_agci.families import decoder_of
from transformers_agci.method.rivals.declaration import ScoreCall
from transformers_agci.method.rivals.generation import check_not_recomputed
from transformers_agci.method.rivals.plan import Plan

if TYPE_CHECKING:
    from transformers_agci.method.rivals.handle import RivalHandle

RIVAL = "_agci_rival"  # attribute of modules that a rival serves
BACKENDS = {"sdpa": "agci_sdpa", "eager": "agci_eager"}


class _ThreadState(threading.local):
    plan: Plan | None = None


_state = _ThreadState()


def set_plan(plan: Plan | None) -> None:
    """What the coming call of the decoder in this thread shall do."""
    _state.plan = plan


def attention_modules(vlm: Any) -> list[nn.Module]:
    """The decoder's attention layers that go through the AttentionInterface."""
    decoder = decoder_of(vlm)
    return [
        module
        for module in decoder.modules()
        if hasattr(module, "layer_idx")
        and getattr(module, "config", None) is decoder.config
        and "ALL_ATTENTION_FUNCTIONS" in vars(sys.modules[type(module).__module__])
        and "Attention" in type(module).__name__
        and "Linear" not in type(module).__name__
    ]


def backend_of(config: Any) -> str:
    """The backend that a decoder's config asks for, behind ours where a rival is on."""
    found = str(getattr(config, "_attn_implementation", "eager"))
    return next((name for name, ours in BACKENDS.items() if ours == found), found)


def use_ours(handle: "RivalHandle", vlm: Any) -> str:
    """Let a decoder's attention come here; returns what its config said. CannotServe where that cannot be."""
    config = decoder_of(vlm).config
    found = str(getattr(config, "_attn_implementation", "eager"))
    modules = attention_modules(vlm)
    if not modules:
        raise CannotServe(
            f"{handle.method} acts on attention, but the decoder of {handle.family.name} does not go through "
            "transformers' AttentionInterface; take a method on positions (bapa, flat, cca_positions)."
        )
    if found not in BACKENDS:
        raise CannotServe(
            f"{handle.method} changes attention scores, which {found} does not show: load the model with "
            "attn_implementation='sdpa' or 'eager'."
        )
    register()
    mark_attention(handle, vlm)
    config._attn_implementation = BACKENDS[found]
    return found


def mark_attention(handle: "RivalHandle", vlm: Any) -> None:
    """Let the decoder's attention layers know the handle that acts on them."""
    for module in attention_modules(vlm):
        vars(module)[RIVAL] = handle


def give_back(vlm: Any, found: str) -> None:
    """Let a decoder's attention go to the backend that it had; another one that it was given meanwhile stays."""
    config = decoder_of(vlm).config
    if config._attn_implementation in BACKENDS.values():
        config._attn_implementation = found


def check_in_use(handle: "RivalHandle", decoder: Any) -> None:
    """InputError where the decoder's attention comes here no longer: the rival would do nothing, unheard."""
    from transformers import AttentionInterface

    name = str(getattr(decoder.config, "_attn_implementation", "eager"))
    if name not in BACKENDS.values():
        raise InputError(
            f"The attention backend was set to {name} after {handle.method} had been attached, which acts inside it: "
            "detach it, set the backend, and attach it again."
        )
    there = AttentionInterface._global_mapping.get(name)
    if there is not attend:
        raise _taken(name, there)


def register() -> None:
    """Tell transformers of our backends; InputError where somebody else has their names."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for backend, name in BACKENDS.items():
        there = AttentionInterface._global_mapping.get(name)
        if there is not None and there is not attend:
            raise _taken(name, there)
        AttentionInterface.register(name, attend)
        masks: Any = AttentionMaskInterface
        masks.register(name, masks._global_mapping[backend])


def _taken(name: str, by: Any) -> InputError:
    return InputError(
        f"The attention backend {name!r} is registered already, by {getattr(by, '__module__', by)}: register that one "
        "under another name."
    )


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The backend's attention ([B, Q, H, D], weights or None) of query [B, H, Q, D] with what the rival changes."""
    backend, plan = _backend(module), _state.plan
    handle: RivalHandle | None = getattr(module, RIVAL, None)
    if handle is None or not handle.is_on():
        return backend(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    if plan is None or plan.handle is not handle:
        check_not_recomputed(handle.rival)
        return backend(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    layer = int(getattr(module, "layer_idx"))  # noqa: B009 - nn.Module's type knows no such name
    if plan.seen is not None:
        _, weights = _last_query(_Call(query, key, value, attention_mask, more), plan, None)
        plan.seen[layer] = _whole(weights.mean(dim=1)[:, 0], plan)
        return backend(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    if handle.rival.mask is not None and plan.ranks is not None and query.shape[2] > 1:
        attention_mask = _ringed(attention_mask, query, key, plan)
    if handle.rival.bias is not None and plan.bias is not None and layer in plan.bias:
        attention_mask = _biased(attention_mask, query, key, plan, layer)
    rescore = _rescoring(handle, plan, layer, key.shape[2])
    if rescore is None:
        return backend(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return]
    own, weights = _last_query(_Call(query, key, value, attention_mask, more), plan, rescore)
    if query.shape[2] == 1:
        return own, weights
    output, all_weights = backend(module, query, key, value, attention_mask, **more)
    rows, columns = torch.arange(len(output), device=output.device), _last_of(plan, query)
    output = output.clone()
    output[rows, columns] = own[:, 0]
    if all_weights is not None:
        all_weights = all_weights.clone()
        all_weights[rows, :, columns] = weights[:, :, 0].to(all_weights)
    return output, all_weights


def _rescoring(
    handle: "RivalHandle", plan: Plan, layer: int, keys: int
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What the method makes of the last query's scores on `keys` keys in this layer; None: they stay."""
    rule = handle.rival.scores
    decoding = plan.past > 0 and plan.length == 1
    if rule is None or not rule.layers(handle.options, layer) or (decoding and not rule.decoding):
        return None
    if rule.weigh is not None and plan.weights is None:
        return None
    call = ScoreCall(handle.strength, handle.options, layer, plan.weights)
    image = _keys_of(plan.keys, plan, keys)[:, None, None]
    return lambda scores: rule.rescore(scores, image, call)


def _backend(module: nn.Module) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = backend_of(module.config)
    if name == "eager":
        found: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        return found
    return ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-any-return]


# What a decoder may give its backend beside queries and keys that the score-by-score way does not compute.
UNSERVED = {"softcap": "caps its scores", "s_aux": "has attention sinks", "sinks": "has attention sinks"}


class _Call(NamedTuple):
    """A layer's arguments: query [B, H, Q, D], key and value [B, fewer H, K, D], mask, and scaling among the rest."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    more: dict[str, Any]


def _last_query(
    call: _Call, plan: Plan, rescore: Callable[[torch.Tensor], torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, 1, H, D] and weights [B, H, 1, K] of each row's last query, score by score."""
    query, key, value, mask, more = call
    for name, what in UNSERVED.items():
        if more.get(name) is not None:
            raise CannotServe(f"{plan.handle.method} cannot be computed: this decoder {what}. Take a position method.")
    batch, heads = query.shape[:2]
    rows, columns = torch.arange(batch, device=query.device), _last_of(plan, query)
    own = query[rows, :, columns][:, :, None]  # [B, H, 1, D]
    groups = heads // key.shape[1]
    keys, values = (part.repeat_interleave(groups, dim=1) if groups > 1 else part for part in (key, value))
    scaling = more.get("scaling")
    scores = own @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    bias = more.get("position_bias")  # [B, H, Q, K] of Inkling, whose layers know distances by it
    if bias is not None:
        scores = scores + bias.expand(batch, heads, -1, -1)[rows, :, columns][:, :, None]
    if rescore is not None:
        scores = rescore(scores)
    hidden = _additive(mask, query, key, plan)
    hidden = hidden.expand(batch, -1, -1, -1)[rows, :, columns][:, :, None]
    weights = (scores + hidden).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values).transpose(1, 2), weights


def _last_of(plan: Plan, query: torch.Tensor) -> torch.Tensor:
    """[B] the row's last attended query among those at hand: the last columns of the call."""
    return (plan.last.to(query.device) - (plan.length - query.shape[2])).clamp_min(0)


def _keys_of(columns: torch.Tensor, plan: Plan, count: int) -> torch.Tensor:
    """[B, L] cut or padded to the keys at hand: a sliding layer has the last ones, a static cache empty ones behind."""
    total = columns.shape[1]
    if count < total:
        return columns[:, total - count :]
    return nn.functional.pad(columns, (0, count - total)) if count > total else columns


def _whole(weights: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Weights [B, K] by column [B, L]."""
    total = plan.keys.shape[1]
    missing = total - weights.shape[1]
    return nn.functional.pad(weights, (missing, 0)) if missing > 0 else weights[:, :total]


def _additive(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The mask in additive form [B or 1, 1, Q, K]; without one the backend is causal."""
    lowest = torch.finfo(query.dtype).min
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        hidden = torch.full((queries, keys), lowest, dtype=query.dtype, device=query.device)
        first = min(keys, plan.keys.shape[1]) - queries  # the column of the first query
        return hidden.triu(first + 1)[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)
    missing = key.shape[2] - mask.shape[-1]  # a static cache may be longer, or shorter, than the mask
    return nn.functional.pad(mask, (0, missing), value=lowest) if missing > 0 else mask[..., : key.shape[2]]


def _ringed(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, plan: Plan) -> torch.Tensor:
    """CCA's mask: within an image a query sees the keys of at most its own rank, later ones too."""
    known = (id(mask), key.shape[2], query.shape[2])
    if known in plan.made:
        return plan.made[known]
    assert plan.owners is not None and plan.ranks is not None
    stock = _additive(mask, query, key, plan)
    keys, queries = key.shape[2], query.shape[2]
    owners, ranks = (_keys_of(part, plan, keys) for part in (plan.owners, plan.ranks))
    columns = _keys_of(torch.arange(plan.keys.shape[1], device=query.device)[None], plan, keys)
    own = slice(plan.keys.shape[1] - queries, plan.keys.shape[1])
    same = (plan.owners[:, own, None] == owners[:, None]) & (owners[:, None] > 0)  # [B, Q, K]
    visible = plan.ranks[:, own, None] >= ranks[:, None]
    later = columns[:, None] > torch.arange(own.start, own.stop, device=query.device)[None, :, None]
    lowest = torch.finfo(stock.dtype).min
    hidden = stock[:, 0] <= lowest / 2
    if bool((same & later & ~hidden).any()):
        raise CannotServe(
            f"{plan.handle.method} changes a causal mask, but image tokens of {plan.handle.family.name} see each "
            "other already: take cca_positions."
        )
    ringed = stock[:, 0].expand(same.shape).clone()
    ringed[same & later & visible] = 0
    ringed[same & ~visible] = lowest
    plan.made[known] = ringed[:, None]
    return plan.made[known]


def _biased(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, plan: Plan, layer: int) -> torch.Tensor:
    """The mask with what is added to the scores of text on image tokens."""
    assert plan.bias is not None
    added = _keys_of(plan.bias[layer], plan, key.shape[2]).to(query)[:, None, None]
    text = ~plan.keys[:, plan.keys.shape[1] - query.shape[2] :]
    return _additive(mask, query, key, plan) + added * text[:, None, :, None].to(query)
