"""The hooks of a rival: on the vlm, which knows the images of a call, and on its decoder, which gets the positions.

As with AGCI's hooks (method/hooks.py) torch hands them the module, which holds the handle; so they are copied and
pickled with a model. At strength 0 they return at once.
"""

import copy
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import ForwardCall, decoder_of
from transformers_agci.method.encoded_images import forget_units, note_units
from transformers_agci.method.forward_call import embeds_of, forward_call, is_decoding_step
from transformers_agci.method.hooks import HANDLE, remove_hooks
from transformers_agci.method.image_positions import ImagePositions, image_positions, image_token_mask
from transformers_agci.method.lost_images import (
    images_went_into,
    note_images_in_cache,
    refuse_lost_images,
    with_whole_images,
)
from transformers_agci.method.rivals import RIVALS
from transformers_agci.method.rivals.attention import RIVAL, Plan, keep_columns, kept_columns, set_plan
from transformers_agci.method.rivals.declaration import Rival
from transformers_agci.method.rivals.generation import check_checkpointing, check_generation
from transformers_agci.method.rivals.positions import (
    Placement,
    grid_of,
    keep_moved,
    note_moved_on,
    past_length,
    positions_of,
    rope_axes,
)

if TYPE_CHECKING:
    from transformers_agci.method.rivals.declaration import Grid
    from transformers_agci.method.rivals.handle import RivalHandle

_CACHE = "past_key_values"
_PIXELS = ("pixel_values", "pixel_values_images", "image_patches")


class _Prompt(NamedTuple):
    """The images of a running call."""

    call: ForwardCall
    images: list[ImagePositions]


class _ThreadState(threading.local):
    """What the hooks of this thread hand to each other; overwritten by the next call of any served vlm."""

    def __init__(self) -> None:
        self.vlm: Any = None
        self.prompt: _Prompt | None = None
        self.moved: torch.Tensor | None = None  # of a call whose cache the decoder makes itself
        self.plan: Plan | None = None  # the same, for attention
        self.weighing = False  # the first pass of two is running
        self.weights: torch.Tensor | None = None  # [B], which it chose
        self.seen: dict[int, torch.Tensor] | None = None  # attention that a blank image gets, while it is shown
        self.bias: dict[int, torch.Tensor] | None = None  # per layer [B, S], of the coming call


_state = _ThreadState()


def before_vlm(vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Find the images of a call, and refuse a call whose images are lost."""
    handle: RivalHandle | None = getattr(vlm, RIVAL, None)
    if handle is None or not handle.is_on():
        return
    _outside_graphs(_find_images, handle, vlm, args, kwargs)


def before_decoder(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give image tokens, and the text behind them, their positions."""
    handle: RivalHandle | None = getattr(decoder, RIVAL, None)
    if handle is None or not handle.is_on():
        return None
    set_plan(None)
    changed: tuple[tuple[Any, ...], dict[str, Any]] | None
    changed = _outside_graphs(_change_call, handle, decoder, args, kwargs)
    return changed


def after_vlm(vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Keep on the cache what later calls need; runs after an exception, too."""
    handle: RivalHandle | None = getattr(vlm, RIVAL, None)
    if handle is not None and _state.vlm is vlm:
        _outside_graphs(_end_call, output)


def before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Choose the weights of the coming prefill from a first pass of stock."""
    handle: RivalHandle | None = getattr(model, RIVAL, None)
    if handle is not None and handle.is_on() and not is_decoding_step(args, kwargs):
        _outside_graphs(_weigh, handle, model, args, kwargs)


def after_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forget the weights; runs after an exception, too."""
    _state.weights = None


def put_hooks_on(handle: "RivalHandle", vlm: Any, outer: Any) -> None:
    """Register the hooks on a vlm and its decoder, and on the model around it where that has two passes."""
    decoder = decoder_of(vlm)
    scores = handle.rival.scores
    if scores is not None and scores.weigh is not None:
        vars(outer)[RIVAL] = handle
        outer.register_forward_pre_hook(before_model, with_kwargs=True)
        outer.register_forward_hook(after_model, with_kwargs=True, always_call=True)
    if handle.rival.bias is not None:
        vars(vlm)["get_image_features"] = WithBlanks(vlm)
    for module in (vlm, decoder):
        vars(module)[RIVAL] = handle
    if handle.family.images.units_are_lost:
        note_units(vlm)
    vlm.register_forward_pre_hook(before_vlm, with_kwargs=True)
    vlm.register_forward_hook(after_vlm, with_kwargs=True, always_call=True)
    decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)


def take_hooks_off(vlm: nn.Module, outer: nn.Module | None) -> None:
    """Remove our hooks wherever they are in a vlm and in the model around it."""
    if HANDLE not in vars(vlm):  # AGCI needs the note, too
        forget_units(vlm)
    if isinstance(vars(vlm).get("get_image_features"), WithBlanks):
        del vars(vlm)["get_image_features"]
    for module in (vlm if outer is None else outer).modules():
        if vars(module).pop(RIVAL, None) is not None:
            remove_hooks(module, _OURS)


_OURS: tuple[Any, ...] = (before_vlm, after_vlm, before_decoder, before_model, after_model)


class WithBlanks:
    """Stands in for `get_image_features` on one vlm: notes on what it returns the features of blank images, too.

    generate() encodes the images before it calls the model, and from then on the pixels are gone.
    """

    def __init__(self, vlm: Any) -> None:
        self.stock = vlm.get_image_features
        functools.update_wrapper(self, self.stock)  # generate() reads the signature

    def __call__(self, pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        output = self.stock(pixel_values, *args, **kwargs)
        if hasattr(output, "__dict__"):
            setattr(output, _BLANK, self.stock(torch.zeros_like(pixel_values), *args, **kwargs))
        return output


_BLANK = "_agci_blank"


def check_combination(vlm: Any, rival: Rival) -> None:
    """InputError where AGCI or a control is on this model at a lambda above 0 and the rival cannot stand beside it."""
    agci = vars(vlm).get(HANDLE)
    if agci is not None and agci.is_on() and not rival.combines:
        beside = ", ".join(name for name, other in RIVALS.items() if other.combines)
        raise InputError(
            f"{rival.name} cannot stand beside {agci!r}: set its lam to 0 or detach it first. The methods that can "
            f"({beside}) place tokens that AGCI has updated before."
        )


# --- what the hooks do where the strength is above 0 ---------------------------------------------------------------


def _find_images(handle: "RivalHandle", vlm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    handle.belongs_to(vlm)
    _state.vlm, _state.prompt, _state.moved = vlm, None, None
    _state.plan, _state.bias = None, None
    if is_decoding_step(args, kwargs):
        return
    check_generation(handle.rival)
    check_combination(vlm, handle.rival)
    call = with_whole_images(forward_call(vlm, args, kwargs))
    if call.has_images:
        images = image_positions(vlm, handle.family, call, image_token_mask(vlm, call))
        _state.prompt = _Prompt(call, images)
        if not _state.weighing:
            handle.count(len(images))
        note_images_in_cache(call.past_key_values)
        if handle.rival.bias is not None:
            _calibrate(handle, vlm, call, images)
    elif call.input_ids is not None and call.input_ids.shape[1] > 1 and not call.has_videos:
        refuse_lost_images(vlm, call)


def _change_call(
    handle: "RivalHandle", decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    vlm = _state.vlm
    if vlm is None or decoder_of(vlm) is not decoder:  # called around the vlm
        return None
    shown = embeds_of(decoder, args, kwargs)
    shown = kwargs.get("input_ids") if shown is None else shown
    if shown is None:
        return None
    prompt, _state.prompt = _state.prompt, None  # a second decoder of the same call gets nothing
    changed = dict(kwargs)
    grids = _grids(handle, vlm, kwargs, shown, prompt)
    if handle.rival.positions is not None:
        _place(handle, vlm, changed, shown, grids)
    if handle.rival.uses_attention and not _state.weighing:
        check_checkpointing(handle.rival, decoder)
        set_plan(_planned(handle, changed, shown, grids))
    return args, changed


def _grids(
    handle: "RivalHandle", vlm: Any, kwargs: dict[str, Any], shown: torch.Tensor, prompt: _Prompt | None
) -> "list[tuple[ImagePositions, Grid | None]]":
    """The images of the call, each with its grid where the method needs one."""
    if prompt is None:
        return []
    rule = handle.rival.positions
    if rule is None or not rule.needs_grid:
        return [(image, None) for image in prompt.images]
    given, past = kwargs.get("position_ids"), past_length(kwargs.get(_CACHE))
    stock = positions_of(given, shown.shape[0], shown.shape[1], past, shown.device)
    real = stock[1:] if stock.shape[0] == rope_axes(vlm.config) + 1 else stock
    return [(image, grid_of(image, number, real, vlm, prompt.call)) for number, image in enumerate(prompt.images)]


def _place(
    handle: "RivalHandle",
    vlm: Any,
    changed: dict[str, Any],
    shown: torch.Tensor,
    images: "list[tuple[ImagePositions, Grid | None]]",
) -> None:
    """Put the positions of the call into the decoder's arguments."""
    rule = handle.rival.positions
    assert rule is not None
    cache = changed.get(_CACHE)
    past = past_length(cache)
    placement = Placement(rule, rope_axes(vlm.config))
    shape = shown.shape[0], shown.shape[1]
    placed, moved = placement.placed(changed.get("position_ids"), shape, cache, images, shown.device)
    if placed is None or moved is None:
        return
    changed["position_ids"] = placed
    if changed.get("attention_mask") is None and cache is None:
        # Equal positions would be read as the starts of packed sequences.
        changed["attention_mask"] = torch.ones(shape, dtype=torch.long, device=shown.device)
    if cache is None:
        _state.moved = moved
    elif images or shape[1] > 1:
        keep_moved(cache, moved, past)


def _planned(
    handle: "RivalHandle",
    kwargs: dict[str, Any],
    shown: torch.Tensor,
    images: "list[tuple[ImagePositions, Grid | None]]",
) -> Plan | None:
    """What the attention layers of the coming call shall do; None where no image is in sight."""
    cache = kwargs.get(_CACHE)
    past, (rows, length) = past_length(cache), shown.shape[:2]
    earlier = kept_columns(cache, past, rows)
    if not images and earlier is None:
        return None
    keys = torch.zeros(rows, past + length, dtype=torch.bool, device=shown.device)
    owners, ranks = keys.long(), keys.long()
    bias = dict(_state.bias or {})
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
    plan = Plan(handle, keys, past, _last_columns(kwargs.get("attention_mask"), past, rows, length, shown.device))
    plan.owners, plan.ranks = (owners, ranks) if ringed else (None, None)
    plan.weights, plan.seen = _state.weights, _state.seen
    plan.bias = {layer: _widened(part, past + length) for layer, part in bias.items()} or None
    if cache is None:
        _state.plan = plan
    elif images or length > 1:
        keep_columns(cache, plan)
    return plan


def _widened(part: torch.Tensor, length: int) -> torch.Tensor:
    """[B, n] with zeros before it, as many as [B, length] lacks."""
    return nn.functional.pad(part, (length - part.shape[1], 0))


def _last_columns(mask: Any, past: int, rows: int, length: int, device: Any) -> torch.Tensor:
    """[B] the last attended column of a call."""
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] >= past + length:
        shown = (mask[:, past : past + length] != 0).long().flip(dims=[1])
        return length - 1 - shown.argmax(dim=1)
    return torch.full((rows,), length - 1, device=device)


def _weigh(handle: "RivalHandle", model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the first pass, and keep the weights that the rule chooses from its last logits."""
    scores = handle.rival.scores
    assert scores is not None and scores.weigh is not None
    _state.weights = None
    if _state.weighing:
        return
    given = dict(forward_call(model, args, kwargs).arguments)
    cache = given.get(_CACHE)
    if not forward_call(model, args, kwargs).has_images and kept_columns(cache, past_length(cache), 1) is None:
        return
    given[_CACHE] = copy.deepcopy(cache) if past_length(cache) else None
    given |= {"use_cache": bool(past_length(cache)), "labels": None, "logits_to_keep": 0}
    known = inspect.signature(model.forward).parameters
    _state.weighing = True
    try:
        with torch.no_grad():
            logits = model.forward(**{name: value for name, value in given.items() if name in known}).logits
    finally:
        _state.weighing = False
    mask, length = given.get("attention_mask"), logits.shape[1]
    last = _last_columns(mask, past_length(cache), len(logits), length, logits.device)
    own = logits[torch.arange(len(logits), device=logits.device), last]
    _state.weights = scores.weigh(own, handle.strength, handle.options)


def _calibrate(handle: "RivalHandle", vlm: Any, call: ForwardCall, images: list[ImagePositions]) -> None:
    """Show blank images in place of the call's own, and keep what the rule makes of the attention that they get."""
    rule = handle.rival.bias
    assert rule is not None
    given = dict(call.arguments)
    for name in _PIXELS:
        if given.get(name) is not None:
            given[name] = torch.zeros_like(given[name])
    if call.encoded is not None:
        blank = getattr(call.encoded, _BLANK, None)
        if blank is None:
            raise ValueError(f"These images were encoded before {handle.method} was attached: encode them again.")
        given["mm_encoder_outputs"] = {**given["mm_encoder_outputs"], "image": blank}
    cache = given.get(_CACHE)
    past = past_length(cache)
    given |= {_CACHE: copy.deepcopy(cache) if past else None, "use_cache": bool(past)}
    prompt, _state.seen, _state.bias = _state.prompt, {}, None
    try:
        with torch.no_grad():
            vlm.forward(**given)
        seen = _state.seen
    finally:
        _state.prompt, _state.seen, _state.plan = prompt, None, None
    length = next(iter(seen.values())).shape[1] - past if seen else 0
    _state.bias = {}
    for layer, weights in seen.items():
        added = torch.zeros(len(weights), length, dtype=torch.float32, device=weights.device)
        for image in images:
            place = image.index(weights.device)
            own = weights[image.row, past + place].float()
            added[image.row, place] = rule.bias(own / own.sum(), handle.strength)
        _state.bias[layer] = added


def _end_call(output: Any) -> None:
    moved, plan = _state.moved, _state.plan
    _state.vlm, _state.moved, _state.plan, _state.bias = None, None, None, None
    cache = None if output is None else images_went_into(output)
    if cache is None:
        return
    if moved is not None:
        note_images_in_cache(cache)
        note_moved_on(cache, moved)
    if plan is not None:
        note_images_in_cache(cache)
        keep_columns(cache, plan)


def _outside_graphs(work: Any, *arguments: Any) -> Any:
    """`work(*arguments)`, which torch.compile leaves to Python."""
    if torch.compiler.is_compiling():
        disable: Any = torch._dynamo.disable
        work = disable(work)
    return work(*arguments)
