"""AGCI on a live model: put on, toggled, taken off.

    from transformers_agci import attach, agci
    handle = attach(model, lam=0.5)     # model: stock transformers
    handle.lam = 0.0                    # stock, bit for bit
    handle.detach()                     # the model is as it was
    with agci(model, lam=0.5): ...      # the same, scoped

What the hooks do stands in hooks.py. One number has one home: lambda is `config.global_context_broadcast_lambda` of the
model, read at every prefill; `handle.lam` and the attribute of that name on the model are views of it.
"""

import contextlib
import inspect
import logging
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from transformers_agci.errors import InputError, short
from transformers_agci.families import SUPPORTED_FAMILIES, Family, family_of, find_vlm
from transformers_agci.method.compiled_graphs import forget_graphs_of
from transformers_agci.method.hooks import HANDLE, put_hooks_on, take_hooks_off
from transformers_agci.method.image_positions import ImagePositions, image_positions
from transformers_agci.method.injection import METHODS, SEEDED, global_context, injection_of
from transformers_agci.method.lam import LAMBDA_KEY, config_lambda, lambda_text, settle_key, validate_lambda
from transformers_agci.method.thread_state import Images

if TYPE_CHECKING:
    from transformers_agci.method.rivals.handle import RivalHandle

SCOPES = ("image", "batch")

_log = logging.getLogger("transformers_agci")


class Injection(NamedTuple):
    """How the embeddings of one call are updated; kept for a second call of the decoder with the same tensor."""

    images: list[ImagePositions]
    lam: float
    scope: str
    method: str


class View:
    """A module whose `config` is the model's: the vlm, the model around it, a PEFT wrapper. It may be replaced."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)
        self.config = getattr(module, "config", None)


class Handle:
    """AGCI on one model; made by `attach`. It does not keep the model alive.

    Attributes:
        scope: "image" (the mean of each image's own tokens) or "batch" (one mean over all image tokens of a call, as
            the published code computes it; a sample's result then depends on its batch mates).
        method: "agci", one of its controls (`method/names.py`) or a rival (`method/rivals/`).
        injections: images updated so far; every beam copy counts, nothing counts while lambda is 0.
        from_config: put on by the config key alone, without a call of `attach`.
    """

    def __init__(self, vlm: Any, family: Family, scope: str, method: str) -> None:
        self.scope = scope
        self.method = method
        self.injections = 0
        self.from_config = False
        self.attached = True
        self.warned_of_rows = False  # see merged_embeds.py
        self.made_features = False  # the vision side has run, in whichever thread and at whichever lambda
        self._model_type = family.model_type
        self._suspended = 0  # `suspended` blocks that are open
        settle_key(vlm.config)
        self._config = vlm.config
        self._found = vars(vlm.config).get(LAMBDA_KEY, _ABSENT)
        self._start_empty()
        self.belongs_to(vlm)
        put_hooks_on(self, vlm)

    def _start_empty(self) -> None:
        self._vlm: weakref.ref[Any] | None = None  # a copy does not know its model until it is asked or called
        self._views: list[View] = []
        self._count_lock = threading.Lock()
        self._done: Any = (
            WeakTensorKeyDictionary()
        )  # decoder input [B, S, D] -> Injection, while autograd may ask again

    @property
    def family(self) -> Family:
        """The row of the model's family."""
        return SUPPORTED_FAMILIES[self._model_type]

    @property
    def lam(self) -> float:
        """Lambda: a view of the model's `config.global_context_broadcast_lambda`, validated when it is set."""
        self._follow_configs()
        return config_lambda(self._config)

    @lam.setter
    def lam(self, value: float) -> None:
        self.set_lam(value, "handle.lam")

    def set_lam(self, value: float, source: str) -> None:
        """Set lambda; `source` is named where it is refused."""
        lam = validate_lambda(value, source)
        vlm = self.vlm()
        if vlm is not None:
            _refuse_beyond_dtype(vlm, lam, source)
        self._follow_configs()
        setattr(self._config, LAMBDA_KEY, lam)

    @property
    def strength(self) -> float:
        """The same as `lam`, under the name that every method has."""
        return self.lam

    @strength.setter
    def strength(self, value: float) -> None:
        self.lam = value

    def active_lam(self) -> float:
        """Lambda of the coming call: 0 where the hooks are off, which a compiled graph may outlive."""
        return 0.0 if self._suspended or not self.attached else self.lam

    def is_on(self) -> bool:
        """Whether there may be something to do, asked where an error about lambda would come too late."""
        return self.attached and not self._suspended and vars(self._config).get(LAMBDA_KEY, 0) != 0

    def detach(self) -> None:
        """Take the hooks off and restore the config key as it was found. A second call does nothing."""
        if not self.attached:
            return
        self.attached = False
        vlm = self.vlm()
        if vlm is not None:
            take_hooks_off(vlm)
        if self._found is _ABSENT:
            vars(self._config).pop(LAMBDA_KEY, None)
        else:
            setattr(self._config, LAMBDA_KEY, self._found)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Stock within a `with` block: the hooks stay in their order and do nothing."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def belongs_to(self, *modules: nn.Module) -> None:
        """Learn the model (its vlm first) and the modules around it that show its config."""
        if self._vlm is None:
            self._vlm = weakref.ref(modules[0])
        known = [view.module() for view in self._views]
        for module in modules:
            if not any(module is one for one in known) and getattr(module, "config", None) is self._config:
                self._views.append(View(module))

    def inject(self, embeds: torch.Tensor, images: Images) -> torch.Tensor:
        """The decoder's input [B, S, D] with its images updated; counts them."""
        if embeds.shape[:2] != images.mask.shape:
            raise ValueError(
                f"The prompt came as {list(images.mask.shape)}, but the decoder received {list(embeds.shape[:2])}: "
                "another hook changed the sequence after AGCI had found its images. Register that hook first."
            )
        vlm = self.vlm()
        positions = image_positions(vlm, self.family, images.call, images.mask)
        injection = Injection(positions, images.lam, self.scope, self.method)
        with self._count_lock:
            self.injections += len(positions)
        if torch.is_grad_enabled() and positions:
            self._done[embeds] = injection
        return _updated(embeds, injection)

    def inject_again(self, embeds: torch.Tensor) -> torch.Tensor | None:
        """The same update where the decoder is called again with a tensor that was updated before.

        Activation checkpointing does that in the backward pass, and wrappers that try again. What they save may be the
        decoder's input of before the update; without this, gradients would be those of stock.
        """
        injection = self._done.get(embeds) if len(self._done) else None
        return None if injection is None else _updated(embeds, injection)

    def vlm(self) -> Any:
        """The module that the hooks are on; None where it is gone, or a copied handle has not met it yet."""
        return self._vlm() if self._vlm is not None else None

    def learns_prompts(self) -> bool:
        """Whether PEFT puts learnt embeddings before the prompt, which look like image features."""
        adapters = [getattr(view.module(), "peft_config", None) for view in self._views]
        return any(getattr(one, "is_prompt_learning", False) for found in adapters if found for one in found.values())

    def _follow_configs(self) -> None:
        """Where a module was given another config, lambda is that one's; one without the key is given it."""
        for view in self._views:
            module = view.module()
            config = getattr(module, "config", None)
            if config is view.config or config is None:
                continue
            view.config = config
            if config is self._config:
                continue
            settle_key(config)
            if LAMBDA_KEY not in vars(config):
                setattr(config, LAMBDA_KEY, config_lambda(self._config))
            _log.warning(
                "AGCI: %s was given another config: lambda is %r.", type(module).__name__, getattr(config, LAMBDA_KEY)
            )
            self._config = config

    def __repr__(self) -> str:
        method = "" if self.method == "agci" else f"method={self.method}, "
        return (
            f"AGCI({'' if self.attached else 'detached, '}lam={self.lam:g}, {method}scope={self.scope}, "
            f"family={self._model_type}, images={self.injections})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a copied or pickled model takes along: its own handle, with everything but the model it came from."""
        kept = {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}
        return kept | {"_suspended": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_empty()


_NOT_COPIED = ("_vlm", "_views", "_count_lock", "_done")
_ABSENT = "absent"


@overload
def attach(model: nn.Module, lam: float, scope: str = "image", method: str = "agci", **options: Any) -> Handle: ...
@overload
def attach(
    model: nn.Module, lam: None = None, scope: str = "image", *, method: str, **options: Any
) -> "RivalHandle": ...
def attach(
    model: nn.Module, lam: float | None = None, scope: str = "image", method: str = "agci", **options: Any
) -> "Handle | RivalHandle":
    """Put AGCI, a control or a rival on a live model.

    Args:
        model: a supported stock model: ForConditionalGeneration, its inner model, or a PEFT model around it.
        lam: lambda, finite and >= 0, of agci and the controls, which need it. It becomes the model's
            `config.global_context_broadcast_lambda`, so that saving, copying and merging keep it.
        scope: "image", or "batch" to compare with the published code (agci and the controls).
        method: "agci", one of its controls (`method/names.py`) or a rival (`method/rivals/`).
        options: `seed` of random, noise and shuffled; `strength` and what else a rival takes.

    Raises:
        InputError (a ValueError): unsupported model (the message lists the supported ones), bad lambda, scope, method,
            strength or option, or AGCI or a rival is already attached. A rival that only places image tokens
            (bapa, flat, cca_positions) may stand beside AGCI, which updates the tokens before.
    """
    if _is_rival(method):
        from transformers_agci.method.rivals.handle import attach_rival

        return attach_rival(model, method, *_rival_arguments(method, lam, scope, options))
    method = _seeded(method, options)
    lam = _needed_lambda(lam, method)
    _one_of("scope", scope, SCOPES)
    vlm = find_vlm(model)
    _refuse_beyond_dtype(vlm, lam, "lam")
    _refuse_beside_rival(vlm, lam)
    handle = current_handle(model)
    if handle is None:
        handle = _put_on(model, scope, method)
    elif handle.from_config:
        handle.from_config, handle.scope, handle.method = False, scope, method
    else:
        raise InputError(f"{handle!r} is already attached to this model: set its lam, or detach it first.")
    found = getattr(handle._config, LAMBDA_KEY, lam)
    if found != lam:
        _log.warning("AGCI: lambda %s as given wins over %r in the model's config.", lambda_text(lam), found)
    handle.lam = lam
    return handle


def attach_from_config(model: nn.Module) -> Handle:
    """Let the model's config key alone decide; returns the handle that is on, or a new one that reads the key.

    A later call of `attach` takes that handle over. Errors as in `attach`.
    """
    handle = current_handle(model)
    if handle is None:
        handle = _put_on(model, "image", "agci")
        handle.from_config = True
    return handle


@overload
def agci(
    model: nn.Module, lam: float, scope: str = "image", method: str = "agci", **options: Any
) -> contextlib.AbstractContextManager[Handle]: ...
@overload
def agci(
    model: nn.Module, lam: None = None, scope: str = "image", *, method: str, **options: Any
) -> "contextlib.AbstractContextManager[RivalHandle]": ...
def agci(model: nn.Module, lam: float | None = None, scope: str = "image", method: str = "agci", **options: Any) -> Any:
    """AGCI, a control or a rival within a `with` block; arguments and errors as in `attach`.

    On a model that has AGCI already, the block changes lambda, scope and method; at its end all is as it was found.
    """
    if _is_rival(method):
        from transformers_agci.method.rivals.handle import rival_scope

        return rival_scope(model, method, *_rival_arguments(method, lam, scope, options))
    method = _seeded(method, options)
    return _agci(model, _needed_lambda(lam, method), scope, method)


@contextlib.contextmanager
def _agci(model: nn.Module, lam: float, scope: str, method: str) -> Iterator[Handle]:
    handle = current_handle(model)
    if handle is None:
        handle = attach(model, lam, scope, method)
        try:
            yield handle
        finally:
            handle.detach()
        return
    _one_of("scope", scope, SCOPES)
    found = handle.lam, handle.scope, handle.method
    try:
        handle.lam, handle.scope, handle.method = lam, scope, method
        yield handle
    finally:
        handle.lam, handle.scope, handle.method = found


def current_handle(model: nn.Module) -> Handle | None:
    """The handle of the AGCI that is on `model` now, or None."""
    try:
        vlm = find_vlm(model)
    except InputError:
        return None
    handle: Handle | None = vars(vlm).get(HANDLE)
    if handle is not None:
        handle.belongs_to(vlm, *_modules_around(model, vlm))
    return handle


# Classes of models and of what is commonly put around them. A number set on a wrapper would stay there and do nothing.
_MODEL_CLASSES = (
    ("transformers.modeling_utils", "PreTrainedModel"),
    ("peft.peft_model", "PeftModel"),
    ("peft.mixed_model", "PeftMixedModel"),
    ("torch.nn.parallel", "DataParallel"),
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)


def install_attribute() -> None:
    """Make `global_context_broadcast_lambda` of models, and of wrappers around them, a view of the model's lambda."""
    for module, name in _MODEL_CLASSES:
        model_class = getattr(sys.modules.get(module), name, None)
        if model_class is not None and LAMBDA_KEY not in vars(model_class):
            setattr(model_class, LAMBDA_KEY, property(_get_lambda, _set_lambda))


def _get_lambda(model: nn.Module) -> float:
    """Lambda of a supported model, 0 where its config has none; AttributeError for any other model."""
    try:
        vlm: Any = find_vlm(model)
    except InputError as error:
        raise AttributeError(str(error)) from error
    handle = current_handle(model)
    return config_lambda(vlm.config) if handle is None else handle.lam


def _set_lambda(model: nn.Module, value: float) -> None:
    """Turn AGCI on at this lambda (0: stock, bit for bit).

    Raises InputError (a ValueError) for a value that is no lambda and for a model that is not supported.
    """
    source = f"model.{LAMBDA_KEY}"
    lam = validate_lambda(value, source)
    attach_from_config(model).set_lam(lam, source)


def _put_on(model: nn.Module, scope: str, method: str) -> Handle:
    vlm = find_vlm(model)
    if LAMBDA_KEY in inspect.unwrap(type(vlm).forward).__code__.co_names:
        raise InputError(
            f"{type(vlm).__name__} of this transformers injects by itself: it is the published patched copy, with "
            "which every image would get two doses. Install stock transformers (pip install --force-reinstall "
            "transformers)."
        )
    install_attribute()
    handle = Handle(vlm, family_of(model), scope, method)
    handle.belongs_to(vlm, *_modules_around(model, vlm))
    forget_graphs_of(vlm)
    return handle


def _modules_around(model: nn.Module, vlm: nn.Module) -> Iterator[nn.Module]:
    """`model` and what is between it and its vlm."""
    for module in model.modules():
        if module is vlm:
            return
        yield module


def _updated(embeds: torch.Tensor, injection: Injection) -> torch.Tensor:
    if not injection.images:
        return embeds
    inject = METHODS.get(injection.method) or injection_of(injection.method)
    assert inject is not None  # `_is_rival` was asked
    tokens = [image.take(embeds) for image in injection.images]  # each [N_i, D]
    context = global_context(torch.cat(tokens)) if injection.scope == "batch" else None
    # Only the image rows are widened to float32: a whole batch of long sequences would take gigabytes.
    updated = embeds.clone()
    changed = [inject(own, injection.lam, context) for own in tokens]
    for image, own in zip(injection.images, changed, strict=True):
        image.put(updated, own)
    if embeds.dtype == torch.float16 or injection.lam > _SURELY_FINITE:
        _refuse_infinite(tokens, changed, injection.lam)
    return updated


_SURELY_FINITE = 1e4  # with bfloat16's and float32's range; asking makes the device wait


def _refuse_infinite(before: list[torch.Tensor], after: list[torch.Tensor], lam: float) -> None:
    if not bool(torch.isfinite(torch.cat(after)).all()) and bool(torch.isfinite(torch.cat(before)).all()):
        raise InputError(f"lambda {lam:g} is too large for {after[0].dtype}: image tokens become infinite.")


def _refuse_beyond_dtype(vlm: Any, lam: float, source: str) -> None:
    dtype = getattr(getattr(vlm.get_input_embeddings(), "weight", None), "dtype", torch.float32)
    if dtype.is_floating_point and lam > torch.finfo(dtype).max:
        raise InputError(f"{source} is {lam:g}, which is more than {dtype}, the model's type, can hold.")


def _is_rival(method: str) -> bool:
    """Whether this names a rival; InputError where it names no method at all."""
    from transformers_agci.method.rivals import RIVALS

    if isinstance(method, str) and method in RIVALS:
        return True
    if not isinstance(method, str) or injection_of(method) is None:
        _one_of("method", method, tuple(dict.fromkeys((*METHODS, *SEEDED, *RIVALS))))
    return False


def _needed_lambda(lam: float | None, method: str) -> float:
    if lam is None:
        raise InputError(
            "lambda must be a finite number >= 0 (0 is the unmodified model), but lam is missing, "
            f"which {method} needs."
        )
    return validate_lambda(lam, "lam")


def _seeded(method: str, options: Mapping[str, Any]) -> str:
    """The method's name with the seed that stands among the options; InputError for any other option."""
    has_seed = method.partition("-")[0] in SEEDED
    for name in options:
        if name != "seed" or not has_seed:
            known = "seed is its only one" if has_seed else "it has none; lam is its strength"
            raise InputError(f"{method} has no option {short(name, 40)}: {known}.")
    if "seed" not in options:
        return method
    named = f"{method}-{options['seed']}"
    if "-" in method or isinstance(options["seed"], bool) or injection_of(named) is None:
        raise InputError(
            f"The seed of {method} is one whole number from 0 to 999999999, but it is {short(options['seed'], 40)}."
        )
    return named


def _rival_arguments(
    method: str, lam: float | None, scope: str, options: Mapping[str, Any]
) -> tuple[float | None, dict[str, Any]]:
    """Strength and options of a rival; InputError for what belongs to AGCI."""
    if lam is not None:
        raise InputError(f"lam belongs to agci and its controls: {method} has strength.")
    if scope != "image":
        raise InputError(f"scope belongs to agci and its controls: {method} works on each image by itself.")
    return options.get("strength"), {name: value for name, value in options.items() if name != "strength"}


def _refuse_beside_rival(vlm: Any, lam: float) -> None:
    """InputError where a rival is on that cannot stand beside AGCI."""
    from transformers_agci.method.rivals.attention import RIVAL

    rival = vars(vlm).get(RIVAL)
    if rival is not None and lam and not rival.rival.combines:
        raise InputError(f"{rival!r} is already attached to this model, and AGCI cannot stand beside it: detach it.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, but it is {value!r}.")
