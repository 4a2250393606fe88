"""The hooks: functions that torch calls before and after modules of a served model.

A vlm (the module that merges image features into the text and calls the decoder) gets a pre-hook and a hook that runs
whatever happens, its decoder a pre-hook, its vision modules two. For two prompts of image
tokens I and text tokens t, at lambda 0.5:

    before_vlm       input_ids [[t, I, I, t], [I, I, t, t]] and pixels: mask [[0, 1, 1, 0], [1, 1, 0, 0]] is kept
    (stock)          vision tower, projector; features are merged into the embeddings
    before_decoder   inputs_embeds [2, 4, D]: tokens 1-2 of the first and 0-1 of the second prompt are updated
    after_vlm        forgets the mask; an error if no decoder took it

The functions know no model: torch hands them the module, and the module holds the handle. So they are copied and
pickled with a model, and can be told from other hooks. At lambda 0, and where one token is decoded, they return at once
and leave the graphs of torch.compile whole.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transformers_agci.families import decoder_of
from transformers_agci.method.embeds_update import check_output_finite
from transformers_agci.method.encoded_images import forget_units, note_units
from transformers_agci.method.forward_call import embeds_of, forward_call, is_decoding_step, with_embeds
from transformers_agci.method.image_positions import image_token_mask
from transformers_agci.method.lost_images import (
    bypass_error,
    check_no_lost_images,
    check_same_tokens,
    images_went_into,
    merged_embeds_error,
    note_images_in_cache,
    refuse_tracing,
    warn_of_mates,
    with_whole_images,
)
from transformers_agci.method.merged_embeds import merged_features, merged_features_in_layer
from transformers_agci.method.thread_state import (
    Images,
    call_frame,
    clear_mark,
    enter,
    features_wait,
    leave,
    mark_features,
    running,
)

if TYPE_CHECKING:
    from transformers_agci.method.handle import Handle

HANDLE = "_agci_handle"  # attribute of a vlm, its decoder and its vision modules

_log = logging.getLogger("transformers_agci")


def before_vlm(vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Find the image tokens of a call, and refuse a call whose images are lost."""
    handle: Handle | None = getattr(vlm, HANDLE, None)
    lam = 0.0 if handle is None else handle.active_lam()
    if handle is not None and lam and not is_decoding_step(args, kwargs):
        outside_graphs(_find_images, handle, vlm, args, kwargs, lam)


def before_decoder(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Update the image tokens on their way into the decoder."""
    handle: Handle | None = getattr(decoder, HANDLE, None)
    if handle is None or not _has_work(handle, args, kwargs):
        return None
    changed: tuple[tuple[Any, ...], dict[str, Any]] | None
    changed = outside_graphs(_update_images, handle, decoder, args, kwargs)
    return changed


def after_vlm(vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Runs after an exception, too: then torch gives no output."""
    handle: Handle | None = getattr(vlm, HANDLE, None)
    if handle is not None and _has_work(handle, args, kwargs):
        outside_graphs(_end_call, handle, output)


def _has_work(handle: "Handle", args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether lambda is above 0, or was when the running call began: another thread may have set it to 0 since."""
    if is_decoding_step(args, kwargs):
        return False
    return handle.is_on() or (not torch.compiler.is_compiling() and running(handle) is not None)


def before_vision(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forget features that were made before: if this module does not come to an end, there are none."""
    if torch.compiler.is_compiling():  # the graphs of a vision tower stay whole; around them there is no mark
        return
    handle: Handle | None = getattr(module, HANDLE, None)
    if handle is not None and handle.is_on() and "input_ids" not in kwargs:
        clear_mark(handle)


def after_vision(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Notice image features that are made outside a call of the vlm: somebody else may merge them."""
    if torch.compiler.is_compiling():
        return
    handle: Handle | None = getattr(module, HANDLE, None)
    if handle is None or "input_ids" in kwargs:  # with ids Gemma3n's embedder reads text
        return
    handle.made_features = handle.made_features or output is not None  # at lambda 0, too: it may be set afterwards
    if handle.is_on():
        _note_features(handle, output)


def before_first_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Notice a decoder that is run by its `.forward`, where torch calls no hook of its own.

    It is there from the moment that image features were made outside a call of the vlm until the decoder has run next
    in each thread that made some.
    """
    if torch.compiler.is_compiling() or in_backward():
        return
    handle: Handle | None = getattr(layer, HANDLE, None)
    if handle is None or not handle.attached or not handle.threads_with_features:
        remove_hooks(layer, (before_first_layer,))
        return
    hidden = kwargs.get("hidden_states", args[0] if args else None)
    vlm = handle.vlm()
    if vlm is None or not handle.is_on() or not features_wait(handle) or running(handle) is not None:
        return
    if isinstance(hidden, torch.Tensor) and hidden.shape[-2] > 1:
        clear_mark(handle)
        if merged_features_in_layer(handle, vlm, hidden):
            raise bypass_error(decoder_of(vlm))


def put_hooks_on(handle: "Handle", vlm: Any) -> None:
    """Register what is missing: at first everything, later what replaced or wraps a module that had its hook.

    PEFT (modules_to_save), FSDP and checkpoint_wrapper put a module of their own in the decoder's place. Our hook on
    the outermost one updates what they hand on and save; the hook on the decoder inside finds its images taken.
    """
    if before_vlm not in vlm._forward_pre_hooks.values():
        vlm.register_forward_pre_hook(before_vlm, with_kwargs=True)
        vlm.register_forward_hook(after_vlm, with_kwargs=True, always_call=True)
    if handle.family.images.units_are_lost:
        note_units(vlm)
    decoder = decoder_of(vlm)
    if before_decoder not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
    for module in vision_modules(vlm):
        if after_vision not in module._forward_hooks.values():
            module.register_forward_pre_hook(before_vision, with_kwargs=True)
            module.register_forward_hook(after_vision, with_kwargs=True, always_call=True)
    for module in (vlm, decoder, *vision_modules(vlm)):
        vars(module)[HANDLE] = handle


def take_hooks_off(vlm: nn.Module) -> None:
    """Remove our hooks wherever they are in a vlm."""
    forget_units(vlm)
    for module in vlm.modules():
        if vars(module).pop(HANDLE, None) is not None:
            remove_hooks(module, _OURS)


def remove_hooks(module: nn.Module, ours: Sequence[Any]) -> None:
    """Remove these functions from a module's forward hooks, and what torch notes about them."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number in [number for number, hook in hooks.items() if hook in ours]:
            del hooks[number]
            for flags in (
                module._forward_pre_hooks_with_kwargs,
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
            ):
                flags.pop(number, None)


# Parts of the names: visual, vision_tower, vision_model, embed_vision, multi_modal_projector, connector, ...
_VISION = ("vis", "image", "project", "connector", "multi_modal", "align", "merger")
_OURS: tuple[Any, ...] = (before_vlm, after_vlm, before_decoder, before_vision, after_vision, before_first_layer)


def vision_modules(vlm: nn.Module) -> list[nn.Module]:
    """The vlm's own parts that turn pixels into image features: tower, projector or merger."""
    return [part for name, part in vlm.named_children() if any(word in name for word in _VISION)]


# --- what the hooks do where lambda is above 0 ---------------------------------------------------------------------


def _find_images(handle: "Handle", vlm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], lam: float) -> None:
    handle.belongs_to(vlm)
    call = with_whole_images(forward_call(vlm, args, kwargs))
    given = call.inputs_embeds if call.input_ids is None else call.input_ids
    is_prefill = given is not None and given.shape[1] > 1
    images = None
    waiting = features_wait(handle)
    if call.has_images:
        refuse_tracing()
        clear_mark(handle)
        warn_of_mates(handle, call)
        images = Images(call, image_token_mask(vlm, call), lam)
        note_images_in_cache(call.cache)
    elif call.has_videos:
        clear_mark(handle)
    elif is_prefill:
        clear_mark(handle)
        if call.input_ids is not None:
            check_no_lost_images(vlm, call)
        elif call.inputs_embeds is not None and merged_features(handle, vlm, call.inputs_embeds, waiting):
            raise merged_embeds_error(vlm)
    if images is not None or is_prefill:
        put_hooks_on(handle, vlm)
        enter(handle, images)


def _update_images(
    handle: "Handle", decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    embeds = embeds_of(decoder, args, kwargs)
    call = running(handle)
    if call is not None and call.images is not None and not call.taken:
        call.taken = True
        if embeds is None:
            raise ValueError(
                f"{type(decoder).__name__} was called without inputs_embeds although images came with the prompt: "
                "AGCI has nothing to inject into."
            )
        vlm = handle.vlm()
        if vlm is not None:
            check_same_tokens(vlm, before_vlm, call.images.call, embeds.shape[:2])
        return with_embeds(decoder, args, kwargs, handle.inject(embeds, call.images))
    if embeds is None:
        return None
    again = handle.inject_again(embeds)
    if again is not None:
        return with_embeds(decoder, args, kwargs, again)
    if call is None and embeds.shape[1] > 1 and not in_backward():
        _check_called_by_owner(handle, decoder, embeds)
    return None


def _check_called_by_owner(handle: "Handle", decoder: nn.Module, embeds: torch.Tensor) -> None:
    """The decoder is called and no call of its vlm runs: text may come so, images may not.

    A call of the vlm that began at lambda 0, or before AGCI came, ends so.
    """
    waiting = features_wait(handle)
    clear_mark(handle)
    vlm = handle.vlm()
    if vlm is not None and not _runs(vlm) and merged_features(handle, vlm, embeds, waiting):
        raise bypass_error(decoder)


def _runs(vlm: nn.Module | None) -> bool:
    """Whether a call of the vlm runs that our hook saw begin, be it at lambda 0; somebody may have removed the hook."""
    return vlm is not None and before_vlm in vlm._forward_pre_hooks.values() and call_frame(vlm) is not None


def _end_call(handle: "Handle", output: Any) -> None:
    call = leave(handle)
    if output is None:
        clear_mark(handle)
    elif call is not None and call.images is not None:
        if not call.taken and bool(call.images.mask.any()):
            raise RuntimeError(
                "Images came with this prompt, but the decoder was not called through its hooks: AGCI injected "
                "nothing. Call the module `language_model`, not its .forward, and in the same thread."
            )
        check_output_finite(output, call.images)
        note_images_in_cache(images_went_into(output))


def _note_features(handle: "Handle", output: Any) -> None:
    if output is None:
        clear_mark(handle)
    elif not in_backward() and running(handle) is None and not _runs(handle.vlm()):
        mark_features(handle)
        _watch_first_layer(handle)


def _watch_first_layer(handle: "Handle") -> None:
    vlm = handle.vlm()
    lists = () if vlm is None else (part for part in decoder_of(vlm).modules() if isinstance(part, nn.ModuleList))
    layer = next((layer for layers in lists for layer in layers), None)
    if layer is not None and before_first_layer not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(before_first_layer, with_kwargs=True)
        vars(layer)[HANDLE] = handle


def in_backward() -> bool:
    """Whether activation checkpointing is recomputing something."""
    return bool(torch._C._current_graph_task_id() != -1)


def outside_graphs(work: Any, *arguments: Any) -> Any:
    """`work(*arguments)`, which torch.compile leaves to Python."""
    if torch.compiler.is_compiling():
        disable: Any = torch._dynamo.disable
        work = disable(work)
    return work(*arguments)
