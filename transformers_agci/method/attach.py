"""The ways to put a method on a live model: a call, a `with` block, the config key, an attribute of the model.

    from transformers_agci import attach, agci
    handle = attach(model, lam=0.5)                 # model: stock transformers
    handle.detach()                                 # the model is as it was
    with agci(model, lam=0.5): ...                  # the same, scoped
    model.global_context_broadcast_lambda = 0.5     # the same, for code that knows nothing of us

What a handle is stands in handle.py, what the hooks do in hooks.py; rivals have both in rivals/.
"""

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import find_vlm
from transformers_agci.method.arguments import check_scope, is_rival, needed_lambda, rival_arguments, seeded
from transformers_agci.method.compiled_graphs import forget_graphs_of
from transformers_agci.method.handle import Handle, check_fits_dtype, current_handle, modules_around
from transformers_agci.method.lam import LAMBDA_KEY, validate_lambda
from transformers_agci.method.rivals import RIVALS

if TYPE_CHECKING:
    from transformers_agci.method.rivals.handle import RivalHandle

_log = logging.getLogger("transformers_agci")


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

    >>> from transformers_agci import attach, load
    >>> model = load().loaded.model
    >>> handle = attach(model, lam=0.5)
    >>> model.config.global_context_broadcast_lambda, handle.injections
    (0.5, 0)
    >>> handle.detach()
    """
    if is_rival(method):
        from transformers_agci.method.rivals.handle import attach_rival

        rival = attach_rival(model, method, *rival_arguments(method, lam, scope, options))
        _say_what_is_not_saved(method, scope)
        return rival
    method = seeded(method, options)
    handle = _attach(model, needed_lambda(lam, method), scope, method)
    _say_what_is_not_saved(method, scope)
    return handle


def _attach(model: nn.Module, lam: float, scope: str, method: str) -> Handle:
    check_scope(scope)
    vlm = find_vlm(model)
    check_fits_dtype(vlm, lam, "lam")
    _check_beside_rival(vlm, lam)
    handle = current_handle(model)
    if handle is None:
        handle = _put_on(model, scope, method)
    elif handle.from_config:
        handle.from_config, handle.scope, handle.method = False, scope, method
    else:
        raise InputError(f"{handle!r} is already attached to this model: set its lam, or detach it first.")
    handle.override_lam(lam)
    return handle


def _say_what_is_not_saved(method: str, scope: str) -> None:
    """One line of the log where a model that is saved now would come back with another method."""
    if method in RIVALS:
        if method != "bapa":  # which has a key of its own
            _log.warning("%s is not saved with the model: attach it again to a saved one.", method)
    elif (method, scope) != ("agci", "image"):
        _log.warning(
            "Only lambda is saved with the model, which then loads as agci with the scope image: attach %s with the "
            "scope %s again to a saved one.",
            method,
            scope,
        )


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

    >>> from transformers_agci import agci, attach, load
    >>> model = load().loaded.model
    >>> handle = attach(model, lam=0.5)
    >>> with agci(model, lam=0.0):
    ...     handle.lam
    0.0
    >>> handle.lam
    0.5
    """
    if is_rival(method):
        from transformers_agci.method.rivals.handle import rival_scope

        return rival_scope(model, method, *rival_arguments(method, lam, scope, options))
    method = seeded(method, options)
    return _agci(model, needed_lambda(lam, method), scope, method)


@contextlib.contextmanager
def _agci(model: nn.Module, lam: float, scope: str, method: str) -> Iterator[Handle]:
    handle = current_handle(model)
    if handle is None:
        handle = _attach(model, lam, scope, method)
        try:
            yield handle
        finally:
            handle.detach()
        return
    check_scope(scope)
    found = handle.lam, handle.scope, handle.method
    try:
        handle.lam, handle.scope, handle.method = lam, scope, method
        yield handle
    finally:
        handle.lam, handle.scope, handle.method = found


def attach_from_config(model: nn.Module) -> Handle:
    """Let the model's config key alone decide; returns the handle that is on, or a new one that reads the key.

    A later call of `attach` takes that handle over. Errors as in `attach`.
    """
    handle = current_handle(model)
    if handle is None:
        handle = _put_on(model, "image", "agci")
        handle.from_config = True
    return handle


def _put_on(model: nn.Module, scope: str, method: str) -> Handle:
    vlm = find_vlm(model)
    if LAMBDA_KEY in inspect.unwrap(type(vlm).forward).__code__.co_names:
        raise InputError(
            f"{type(vlm).__name__} of this transformers injects by itself: it is the published patched copy, with "
            "which every image would get two doses. Install stock transformers (pip install --force-reinstall "
            "transformers)."
        )
    install_attribute()
    handle = Handle(vlm, scope, method)
    handle.belongs_to(vlm, *modules_around(model, vlm))
    forget_graphs_of(vlm)
    return handle


def _check_beside_rival(vlm: Any, lam: float) -> None:
    """InputError where a rival is on that cannot stand beside AGCI."""
    from transformers_agci.method.rivals.attention import RIVAL

    rival = vars(vlm).get(RIVAL)
    if rival is not None and lam and not rival.rival.combines:
        raise InputError(f"{rival!r} is already attached to this model, and AGCI cannot stand beside it: detach it.")


# Classes of models and of what is commonly put around them. A number set on a wrapper would stay there and do nothing.
_MODEL_CLASSES = (
    ("transformers.modeling_utils", "PreTrainedModel"),
    ("peft.peft_model", "PeftModel"),
    ("peft.mixed_model", "PeftMixedModel"),
    ("peft.tuners.tuners_utils", "BaseTuner"),
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
    """Lambda of a supported model, 0 where AGCI is not on, whatever its config says; AttributeError for any other."""
    try:
        find_vlm(model)
    except InputError as error:
        raise AttributeError(str(error)) from error
    handle = current_handle(model)
    return 0.0 if handle is None else handle.lam


def _set_lambda(model: nn.Module, value: float) -> None:
    """Turn AGCI on at this lambda (0: stock, bit for bit).

    Raises InputError (a ValueError) for a value that is no lambda and for a model that is not supported.
    """
    source = f"model.{LAMBDA_KEY}"
    lam = validate_lambda(value, source)
    attach_from_config(model).set_lam(lam, source)
