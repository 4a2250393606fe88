"""AGCI on a live model: three PyTorch hooks that can be put on and taken off.

    from transformers_agci import attach, agci
    handle = attach(model, lam=0.5)     # model: stock transformers
    handle.lam = 0.0                    # stock, bit for bit
    handle.detach()                     # the model is as it was
    with agci(model, lam=0.5): ...      # the same, scoped

A pre-hook on the owner (the module that merges image features into the text) marks the image tokens of the call, a
pre-hook on the decoder `language_model` updates them, and an always-called hook on the owner clears what is left over.
What passes between the hooks is thread-local: one model may run in several threads.
"""

import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import Family, ForwardCall, decoder_of, family_of, find_vlm
from transformers_agci.method.compiled_graphs import forget_graphs_of
from transformers_agci.method.image_positions import (
    image_positions,
    image_token_mask,
    note_images_in_cache,
    refuse_lost_images,
)
from transformers_agci.method.injection import METHODS, global_context
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text, validate_lambda

SCOPES = ("image", "batch")
_HANDLE = "_agci_handle"  # attribute of the owner that holds its handle

_log = logging.getLogger("transformers_agci")


class _Pending(NamedTuple):
    """What the owner's pre-hook leaves for the decoder's."""

    call: ForwardCall
    mask: torch.Tensor  # [B, S] bool
    lam: float


class _Carrier(threading.local):
    """Per thread: what is pending for which handle. A stack, because an owner may call itself through a wrapper."""

    def __init__(self) -> None:
        self.pending: list[tuple[int, _Pending | None]] = []


_carrier = _Carrier()


class Handle:
    """AGCI on one model; made by `attach`.

    Attributes:
        family: the row of the model's family.
        scope: "image" (the mean of each image's own tokens) or "batch" (one mean over all image tokens of a call, as
            the published code computes it; a sample's result then depends on its batch mates).
        method: "agci", or one of the controls "uniform" and "random".
        injections: images updated so far; every beam copy counts, nothing counts while lambda is 0.
    """

    def __init__(self, owner: Any, family: Family, scope: str, method: str) -> None:
        self.family = family
        self.scope = scope
        self.method = method
        self.injections = 0
        self.by_key = False  # put on by the config key alone, without a call of `attach`
        self._owner = owner
        _lift_key(owner.config)
        self._found = vars(owner.config).get(LAMBDA_KEY, _ABSENT)
        self._count_lock = _Lock()
        self._hooks = self._put_hooks_on()
        setattr(owner, _HANDLE, self)

    @property
    def lam(self) -> float:
        """Lambda: a view of the model's `config.global_context_broadcast_lambda`, validated when it is set."""
        return _config_lambda(self._owner.config)

    @lam.setter
    def lam(self, value: float) -> None:
        setattr(self._owner.config, LAMBDA_KEY, validate_lambda(value, "handle.lam"))

    @property
    def attached(self) -> bool:
        return bool(self._hooks)

    def detach(self) -> None:
        """Take the hooks off and restore the config key as it was found. A second call does nothing."""
        if not self._hooks:
            return
        self._take_hooks_off()
        delattr(self._owner, _HANDLE)
        _restore_key(self._owner.config, self._found)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Stock within a `with` block, without the hooks; to compare with."""
        self._take_hooks_off()
        try:
            yield
        finally:
            self._hooks = self._put_hooks_on()

    def __repr__(self) -> str:
        method = "" if self.method == "agci" else f"method={self.method}, "
        return (
            f"AGCI({'' if self.attached else 'detached, '}lam={self.lam:g}, {method}scope={self.scope}, "
            f"family={self.family.model_type}, images={self.injections})"
        )

    def _put_hooks_on(self) -> list[Any]:
        owner = self._owner
        return [
            owner.register_forward_pre_hook(self._before_owner, with_kwargs=True),
            decoder_of(owner).register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            owner.register_forward_hook(self._after_owner, always_call=True),
        ]

    def _take_hooks_off(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_owner(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lam = _config_lambda(owner.config) if self._hooks else 0.0  # a compiled graph may outlive them
        pending = None
        if lam:
            call = forward_call(owner, args, kwargs)
            if call.has_images:
                pending = _Pending(call, image_token_mask(owner, call), lam)
                note_images_in_cache(call)
            else:
                refuse_lost_images(owner, call)
        _carrier.pending.append((id(self), pending))

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        pending = _take_pending(id(self))
        if pending is None:
            return None
        embeds = kwargs["inputs_embeds"]  # [B, S, D], image features merged in
        updated, images = self._inject(embeds, pending)
        with self._count_lock:
            self.injections += images
        return args, {**kwargs, "inputs_embeds": updated}

    def _after_owner(self, owner: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if _carrier.pending and _carrier.pending[-1][0] == id(self):
            _carrier.pending.pop()

    def _inject(self, embeds: torch.Tensor, pending: _Pending) -> tuple[torch.Tensor, int]:
        images = image_positions(self._owner, self.family, pending.call, pending.mask)
        if not images:
            return embeds, 0
        inject = METHODS[self.method]
        tokens = [image.take(embeds) for image in images]  # each [N_i, D]
        context = global_context(torch.cat(tokens)) if self.scope == "batch" else None
        # Only the image rows are widened to float32: a whole batch of long sequences would take gigabytes.
        updated = embeds.clone()
        for image, own in zip(images, tokens, strict=True):
            image.put(updated, inject(own, pending.lam, context))
        return updated, len(images)


def attach(model: nn.Module, lam: float, scope: str = "image", method: str = "agci") -> Handle:
    """Put AGCI on a live model.

    Args:
        model: a supported stock model: ForConditionalGeneration, its inner model, or a PEFT model around it.
        lam: lambda, finite and >= 0. It becomes the model's `config.global_context_broadcast_lambda`, so that saving,
            copying and merging keep it.
        scope: "image", or "batch" to compare with the published code.
        method: "agci", or a control: "uniform" or "random".

    Raises:
        InputError (a ValueError): unsupported model (the message lists the supported ones), bad lambda, scope or
            method, or AGCI is already attached.
    """
    lam = validate_lambda(lam, "lam")
    _one_of("scope", scope, SCOPES)
    _one_of("method", method, tuple(METHODS))
    handle = current_handle(find_vlm(model))
    if handle is None:
        handle = _put_on(model, scope, method)
    elif handle.by_key:
        handle.by_key, handle.scope, handle.method = False, scope, method
    else:
        raise InputError(f"{handle!r} is already attached to this model: set its lam, or detach it first.")
    _log_conflict(handle, lam)
    handle.lam = lam
    return handle


def serve_key(model: nn.Module) -> Handle:
    """Let the model's config key alone decide; returns the handle that is on, or a new one that reads the key.

    A later call of `attach` takes that handle over. Errors as in `attach`.
    """
    handle = current_handle(find_vlm(model))
    if handle is None:
        handle = _put_on(model, "image", "agci")
        handle.by_key = True
    return handle


@contextlib.contextmanager
def agci(model: nn.Module, lam: float, scope: str = "image", method: str = "agci") -> Iterator[Handle]:
    """AGCI within a `with` block; arguments and errors as in `attach`.

    On a model that has AGCI already, the block changes lambda, scope and method; at its end all is as it was found.
    """
    handle = current_handle(find_vlm(model))
    if handle is None:
        handle = attach(model, lam, scope, method)
        try:
            yield handle
        finally:
            handle.detach()
        return
    lam = validate_lambda(lam, "lam")
    _one_of("scope", scope, SCOPES)
    _one_of("method", method, tuple(METHODS))
    found = handle.lam, handle.scope, handle.method
    try:
        handle.lam, handle.scope, handle.method = lam, scope, method
        yield handle
    finally:
        handle.lam, handle.scope, handle.method = found


def current_handle(model: nn.Module) -> Handle | None:
    """The handle of the AGCI that is on `model` now, or None."""
    for module in model.modules():
        if _HANDLE in vars(module):
            return vars(module)[_HANDLE]
    return None


def image_embeddings(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The image tokens of a call before injection: one [N_i, D] tensor per image, in the order of the prompt.

    Runs the vision side of `model(**inputs)` and stops before the decoder. The form is the same for all families;
    LLaVA-NeXT's tensors hold its newline tokens. Gradients flow unless the caller turns them off.

    Raises:
        InputError: unsupported model, or inputs without an image.
    """
    family, owner = family_of(model), cast(Any, find_vlm(model))
    thread = threading.get_ident()
    seen: list[tuple[ForwardCall, torch.Tensor]] = []

    def before_owner(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = forward_call(module, args, kwargs)
        if threading.get_ident() == thread and call.has_images:
            seen.append((call, image_token_mask(module, call)))

    def before_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            raise _Reached(kwargs["inputs_embeds"])

    hooks = [
        owner.register_forward_pre_hook(before_owner, with_kwargs=True),
        # First in line, so that an attached AGCI has not changed the tokens yet.
        decoder_of(owner).register_forward_pre_hook(before_decoder, with_kwargs=True, prepend=True),
    ]
    try:
        model(**inputs)
    except _Reached as reached:
        embeds = reached.embeds
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError("These inputs hold no image: give the processor's output with pixel_values.")
    return [image.take(embeds) for image in image_positions(owner, family, *seen[0])]


def _put_on(model: nn.Module, scope: str, method: str) -> Handle:
    owner = find_vlm(model)
    if LAMBDA_KEY in inspect.unwrap(type(owner).forward).__code__.co_names:
        raise InputError(
            f"{type(owner).__name__} of this transformers injects by itself: it is the published patched copy, with "
            "which every image would get two doses. Install stock transformers (pip install --force-reinstall "
            "transformers)."
        )
    handle = Handle(owner, family_of(model), scope, method)
    forget_graphs_of(owner)
    return handle


def _log_conflict(handle: Handle, lam: float) -> None:
    found = getattr(handle._owner.config, LAMBDA_KEY, lam)
    if found != lam:
        _log.warning("AGCI: lambda %s as given wins over %r in the model's config.", lambda_text(lam), found)


class _Reached(Exception):
    """The decoder was reached; carries what it was about to receive."""

    def __init__(self, embeds: torch.Tensor) -> None:
        super().__init__()
        self.embeds = embeds


def forward_call(owner: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ForwardCall:
    """The arguments of the owner's forward that families look at, given by position or by name."""
    given = {**dict(zip(_parameters(type(owner).forward), args, strict=False)), **kwargs}
    pixels = next((given[name] for name in _PIXELS if _given(given, name)), None)
    outputs = given.get("mm_encoder_outputs")
    encoded = outputs.get("image") if isinstance(outputs, Mapping) else None
    names = ("input_ids", "inputs_embeds", "attention_mask", "image_grid_thw", "image_sizes", "past_key_values")
    return ForwardCall(
        **{name: given.get(name) for name in names}, pixel_values=pixels, encoded=encoded, arguments=given
    )


_PIXELS = ("pixel_values", "pixel_values_images", "image_patches")


def _given(arguments: Mapping[str, Any], name: str) -> bool:
    value = arguments.get(name)
    return value is not None and len(value) > 0


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]  # without self


def _take_pending(handle_id: int) -> _Pending | None:
    """What waits for this handle in this thread; taken, so that a second decoder call of the same pass gets nothing."""
    if not _carrier.pending or _carrier.pending[-1][0] != handle_id:
        return None
    pending = _carrier.pending[-1][1]
    _carrier.pending[-1] = (handle_id, None)
    return pending


def _config_lambda(config: Any) -> float:
    return validate_lambda(getattr(config, LAMBDA_KEY, 0.0), f"{LAMBDA_KEY} in the model's config")


def _lift_key(config: Any) -> None:
    """Let the key stand in the whole model's config only, where one of its parts has a copy of it.

    Where a checkpoint's config.json is flat, transformers 4.57 copies unknown keys into the text part and reads them
    there; a saved model would carry two lambdas.
    """
    text = vars(config).get("text_config")
    if text is not None and LAMBDA_KEY in vars(text):
        copied = vars(text).pop(LAMBDA_KEY)
        vars(config)[LAMBDA_KEY] = copied


_ABSENT = "absent"


def _restore_key(config: Any, found: Any) -> None:
    if found is _ABSENT:
        vars(config).pop(LAMBDA_KEY, None)
    else:
        setattr(config, LAMBDA_KEY, found)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, but it is {value!r}.")


class _Lock:
    """A lock that a model may be copied and pickled with: the copy gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["_Lock"], tuple[()]]:
        return _Lock, ()
