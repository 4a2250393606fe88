"""The hooks of a rival: on the vlm, which knows the images of a call, and on its decoder, which gets the positions.

As with AGCI's hooks (method/hooks.py) torch hands them the module, which holds the handle; so they are copied and
pickled with a model. At strength 0 they return at once.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transformers_agci.errors import CannotServe, InputError
from transformers_agci.families import decoder_of
from transformers_agci.method.encoded_images import NotesUnits, forget_units, note_units
from transformers_agci.method.forward_call import cache_of_call, embeds_of, forward_call, is_decoding_step
from transformers_agci.method.hooks import HANDLE, in_backward, outside_graphs, remove_hooks
from transformers_agci.method.image_positions import ImagePositions, image_positions, image_token_mask
from transformers_agci.method.lost_images import (
    check_no_lost_images,
    check_same_tokens,
    images_went_into,
    note_images_in_cache,
    refuse_tracing,
    with_whole_images,
)
from transformers_agci.method.rivals import RIVALS
from transformers_agci.method.rivals.attention import RIVAL, check_in_use, mark_attention, set_plan
from transformers_agci.method.rivals.call_state import Prompt, state
from transformers_agci.method.rivals.declaration import Rival
from transformers_agci.method.rivals.first_pass import WithBlanks, calibrate, weigh
from transformers_agci.method.rivals.generation import check_checkpointing, check_generation
from transformers_agci.method.rivals.plan import keep_columns, plan_of_call
from transformers_agci.method.rivals.positions import (
    Placement,
    check_packing,
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


def before_vlm(vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Find the images of a call, and refuse a call whose images are lost."""
    handle: RivalHandle | None = getattr(vlm, RIVAL, None)
    if handle is None or not handle.is_on():
        return
    outside_graphs(_find_images, handle, vlm, args, kwargs)


def before_decoder(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give image tokens, and the text behind them, their positions."""
    handle: RivalHandle | None = getattr(decoder, RIVAL, None)
    if state.contrasting:
        state.positions = kwargs.get("position_ids")
    if handle is None or not handle.is_on():
        return None
    changed: tuple[tuple[Any, ...], dict[str, Any]] | None
    changed = outside_graphs(_change_call, handle, decoder, args, kwargs)
    return changed


def after_vlm(vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Keep on the cache what later calls need; runs after an exception, too."""
    handle: RivalHandle | None = getattr(vlm, RIVAL, None)
    if handle is not None and state.vlm is vlm:
        outside_graphs(_end_call, output)


def before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Choose the weights of the coming prefill from a first pass of stock."""
    handle: RivalHandle | None = getattr(model, RIVAL, None)
    if handle is not None and handle.is_on() and not is_decoding_step(args, kwargs):
        outside_graphs(weigh, handle, model, args, kwargs)


def after_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forget the weights; runs after an exception, too."""
    state.weights = None


def put_hooks_on(handle: "RivalHandle", vlm: Any, outer: Any) -> None:
    """Register the hooks on a vlm and its decoder, and on the model around it where that has two passes."""
    scores = handle.rival.scores
    if scores is not None and scores.weigh is not None:
        vars(outer)[RIVAL] = handle
        outer.register_forward_pre_hook(before_model, with_kwargs=True)
        outer.register_forward_hook(after_model, with_kwargs=True, always_call=True)
    if handle.family.images.units_are_lost:
        note_units(vlm)
    if handle.rival.bias is not None:
        vars(vlm)["get_image_features"] = WithBlanks(vlm)
    vars(vlm)[RIVAL] = handle
    vlm.register_forward_pre_hook(before_vlm, with_kwargs=True)
    vlm.register_forward_hook(after_vlm, with_kwargs=True, always_call=True)
    _put_on_decoder(handle, vlm)


def _put_on_decoder(handle: "RivalHandle", vlm: Any) -> None:
    """Register the decoder's hook where it is not, and let its attention know the handle.

    Asked at each call with images: the decoder may have been wrapped, or replaced by a copy with a handle of its own.
    """
    decoder = decoder_of(vlm)
    vars(decoder)[RIVAL] = handle
    if before_decoder not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
    if handle.rival.uses_attention:
        mark_attention(handle, vlm)


def take_hooks_off(vlm: nn.Module, outer: nn.Module | None) -> None:
    """Remove our hooks wherever they are in a vlm and in the model around it."""
    stand_in = vars(vlm).get("get_image_features")
    if isinstance(stand_in, WithBlanks):
        vars(vlm)["get_image_features"] = stand_in.stock
        if not isinstance(stand_in.stock, NotesUnits):
            del vars(vlm)["get_image_features"]
    if HANDLE not in vars(vlm):  # AGCI needs the note, too
        forget_units(vlm)
    for module in (vlm if outer is None else outer).modules():
        if vars(module).pop(RIVAL, None) is not None:
            remove_hooks(module, _OURS)


_OURS: tuple[Any, ...] = (before_vlm, after_vlm, before_decoder, before_model, after_model)


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
    state.start(vlm)
    if is_decoding_step(args, kwargs):
        return
    check_generation(handle.rival)
    check_combination(vlm, handle.rival)
    call = with_whole_images(forward_call(vlm, args, kwargs))
    if call.has_images:
        refuse_tracing()
        _put_on_decoder(handle, vlm)
        images = image_positions(vlm, handle.family, call, image_token_mask(vlm, call))
        state.prompt = Prompt(call, images)
        if not state.weighing:
            handle.count(len(images))
        note_images_in_cache(call.cache)
        if handle.rival.bias is not None:
            calibrate(handle, vlm, call, images)
    elif call.input_ids is not None and call.input_ids.shape[1] > 1 and not call.has_videos:
        check_no_lost_images(vlm, call)


def _change_call(
    handle: "RivalHandle", decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    vlm = state.vlm
    if vlm is None:
        set_plan(None)
    if vlm is None or decoder_of(vlm) is not decoder:  # called around the vlm, or by a wrapper that has had its turn
        if in_backward() and handle.recomputations.are_waiting():
            raise CannotServe(
                f"{handle.method} acts on a call of the whole model, but torch.utils.checkpoint runs the decoder alone "
                "again in the backward pass: checkpoint the model or its layers."
            )
        return None
    shown = embeds_of(decoder, args, kwargs)
    shown = kwargs.get("input_ids") if shown is None else shown
    if shown is None:
        return None
    prompt, state.prompt = state.prompt, None  # a second decoder of the same call gets nothing
    if prompt is not None:
        check_same_tokens(vlm, before_vlm, prompt.call, shown.shape[:2])
    changed = dict(kwargs)
    grids = _grids(handle, vlm, kwargs, shown, prompt)
    if grids and torch.is_grad_enabled():
        handle.recomputations.note()
    if handle.rival.positions is not None:
        _place(handle, vlm, changed, shown, grids)
    if handle.rival.uses_attention and not state.weighing:
        check_checkpointing(handle.rival, decoder)
        _plan_attention(handle, decoder, changed, shown, grids)
    return args, changed


def _grids(
    handle: "RivalHandle", vlm: Any, kwargs: dict[str, Any], shown: torch.Tensor, prompt: Prompt | None
) -> "list[tuple[ImagePositions, Grid | None]]":
    """The images of the call, each with its grid where the method needs one."""
    if prompt is None:
        return []
    rule = handle.rival.positions
    if rule is None or not rule.needs_grid:
        return [(image, None) for image in prompt.images]
    given, past = kwargs.get("position_ids"), past_length(cache_of_call(kwargs))
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
    if images:
        check_packing(handle.rival, vlm)
    cache = cache_of_call(changed)
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
        state.moved = moved
    elif images or shape[1] > 1:
        keep_moved(cache, moved, past)


def _plan_attention(
    handle: "RivalHandle",
    decoder: Any,
    changed: dict[str, Any],
    shown: torch.Tensor,
    images: "list[tuple[ImagePositions, Grid | None]]",
) -> None:
    """Say what the attention layers of the coming call shall do, and keep on the cache what later calls need of it."""
    plan = plan_of_call(handle, changed, shown, images)
    set_plan(plan)
    if plan is None:
        return
    check_in_use(handle, decoder)
    cache = cache_of_call(changed)
    if cache is None:
        state.plan = plan
    elif images or shown.shape[1] > 1:
        keep_columns(cache, plan)


def _end_call(output: Any) -> None:
    moved, plan = state.end()
    set_plan(None)
    cache = None if output is None else images_went_into(output)
    if cache is None:
        return
    if moved is not None:
        note_images_in_cache(cache)
        note_moved_on(cache, moved)
    if plan is not None:
        note_images_in_cache(cache)
        keep_columns(cache, plan)
