"""AGCI on one live model: its lambda, what it does to the images of a call, and the model that it belongs to.

    handle = attach(model, lam=0.5)     # attach.py
    handle.lam = 0.0                    # stock, bit for bit
    print(handle)                       # AGCI(lam=0, scope=image, family=..., images=12)
    handle.detach()                     # the model is as it was

Of a call, the hooks (hooks.py) find the images and hand them to `Handle.inject`, which applies the formula
(injection.py) to each. One number has one home: lambda is `config.global_context_broadcast_lambda` of the model, read
at every prefill; `handle.lam` and the attribute of that name on the model are views of it.
"""

import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from transformers_agci.errors import CannotServe, InputError
from transformers_agci.families import find_vlm
from transformers_agci.method.attached import AttachedMethod
from transformers_agci.method.embeds_update import EmbedsUpdate
from transformers_agci.method.hooks import HANDLE, put_hooks_on, take_hooks_off
from transformers_agci.method.image_positions import image_positions
from transformers_agci.method.lam import (
    LAMBDA_KEY,
    config_lambda,
    lambda_text,
    served_name,
    settle_key,
    validate_lambda,
)
from transformers_agci.method.thread_state import Images

_log = logging.getLogger("transformers_agci")


class Handle(AttachedMethod):
    """AGCI on one model; made by `attach`. It does not keep the model alive.

    Attributes:
        scope: "image" (the mean of each image's own tokens) or "batch" (one mean over all image tokens of a call, as
            the published code computes it; a sample's result then depends on its batch mates).
        method: "agci" or one of its controls (`method/names.py`).
        context: [D], g of all images in place of the mean of their own tokens; None: each image's own.
        injections: images updated so far; every beam copy counts, nothing counts while lambda is 0.
        from_config: put on by the config key alone, without a call of `attach`.

    >>> from transformers_agci import Handle, attach, load
    >>> model = load().loaded.model
    >>> handle = attach(model, lam=0.5)
    >>> isinstance(handle, Handle), handle.lam, handle.scope
    (True, 0.5, 'image')
    >>> handle.lam = -1
    Traceback (most recent call last):
    transformers_agci.errors.InputError: lambda must be a finite number >= 0 (0 is the unmodified model), but
    handle.lam is -1.
    >>> handle.detach()
    """

    config_key = LAMBDA_KEY
    not_copied = (*AttachedMethod.not_copied, "_views", "_updates", "threads_with_features")

    def __init__(self, vlm: Any, scope: str, method: str) -> None:
        settle_key(vlm.config)
        super().__init__(vlm)
        self.scope = scope
        self.method = method
        self.context: torch.Tensor | None = None
        self.warned_of_rows = False  # see merged_embeds.py
        self.warned_of_mates = False  # see lost_images.py
        self.made_features = False  # the vision side has run, in whichever thread and at whichever lambda
        self.belongs_to(vlm)
        put_hooks_on(self, vlm)

    def _start_empty(self) -> None:
        super()._start_empty()
        self._views: list[_View] = []
        self.threads_with_features: set[int] = set()  # see thread_state.py; one that has ended may still be in it
        # Decoder input [B, S, D] -> EmbedsUpdate, while autograd may ask again.
        self._updates: Any = WeakTensorKeyDictionary()

    # --- lambda ----------------------------------------------------------------------------------------------------

    @property
    def lam(self) -> float:
        """Lambda: a view of the model's `config.global_context_broadcast_lambda`, validated when it is set."""
        self._follow_configs()
        return config_lambda(self._config)

    @lam.setter
    def lam(self, value: float) -> None:
        self.set_lam(value, "handle.lam")

    @property
    def strength(self) -> float:
        """The same as `lam`, under the name that every method has."""
        return self.lam

    @strength.setter
    def strength(self, value: float) -> None:
        self.lam = value

    def set_lam(self, value: float, source: str) -> None:
        """Set lambda; `source` is named where it is refused, as it is by a handle that was taken off."""
        lam = validate_lambda(value, source)
        if not self.attached:  # the config is the model's own again, and is saved with it
            raise InputError(f"{source} cannot be set: AGCI is detached from this model; attach it again.")
        vlm = self.vlm()
        if vlm is not None:
            check_fits_dtype(vlm, lam, source)
        self._follow_configs()
        if lam != vars(self._config).get(LAMBDA_KEY, 0.0):
            self.recomputations.warn("AGCI: lambda was changed")
        setattr(self._config, LAMBDA_KEY, lam)

    def override_lam(self, lam: float) -> None:
        """Set lambda as a call gave it; another one in the model's config gives way, with a warning."""
        found = getattr(self._config, LAMBDA_KEY, lam)
        if found != lam:
            _log.warning("AGCI: lambda %s as given wins over %r in the model's config.", lambda_text(lam), found)
        self.lam = lam

    def active_lam(self) -> float:
        """Lambda of the coming call: 0 where the hooks do nothing."""
        return self.lam if self.may_act() else 0.0

    def is_on(self) -> bool:
        """Whether there may be something to do, asked where an error about lambda would come too late."""
        return self.may_act() and vars(self._config).get(LAMBDA_KEY, 0) != 0

    # --- the images of a call --------------------------------------------------------------------------------------

    def inject(self, embeds: torch.Tensor, images: Images) -> torch.Tensor:
        """The decoder's input [B, S, D] with its images updated; counts them."""
        positions = image_positions(self.vlm(), self.family, images.call, images.mask)
        update = EmbedsUpdate(positions, images.lam, self.scope, self.method, self.context)
        self.count(len(positions))
        if torch.is_grad_enabled() and positions:
            self._updates[embeds] = update
            self.recomputations.note()
        return update.apply(embeds)

    def inject_again(self, embeds: torch.Tensor) -> torch.Tensor | None:
        """The same update where the decoder is called again with a tensor that was updated before.

        Activation checkpointing does that in the backward pass, and wrappers that try again. What they save may be the
        decoder's input of before the update; without this, gradients would be those of stock.
        """
        update = self._updates.get(embeds) if len(self._updates) else None
        return None if update is None else update.apply(embeds)

    # --- the model -------------------------------------------------------------------------------------------------

    def belongs_to(self, *modules: nn.Module) -> None:
        """Learn the model (its vlm first) and the modules around it that show its config.

        A model may have been given another config before AGCI came, which its vlm does not have: that one counts.
        """
        if self.vlm() is None:
            self._vlm = weakref.ref(modules[0])
        known = [view.module() for view in self._views]
        for module in modules:
            if any(module is one for one in known):
                continue
            view = _View(module, self._config)
            if type(view.shown()) is type(self._config):
                self._views.append(view)

    def learns_prompts(self) -> bool:
        """Whether PEFT puts learnt embeddings before the prompt, which look like image features."""
        adapters = [getattr(view.module(), "peft_config", None) for view in self._views]
        return any(getattr(one, "is_prompt_learning", False) for found in adapters if found for one in found.values())

    def _follow_configs(self) -> None:
        """Where a module was given another config, lambda is that one's; one without the key is given it."""
        for view in self._views:
            config = view.shown()
            if config is view.config or config is None:
                continue
            view.config = config
            if config is self._config:
                continue
            module = view.module()
            settle_key(getattr(module, "config", config))
            self._remember(config)
            if LAMBDA_KEY not in vars(config):
                setattr(config, LAMBDA_KEY, config_lambda(self._config))
            _log.warning(
                "AGCI: %s was given another config: lambda is %r.", type(module).__name__, getattr(config, LAMBDA_KEY)
            )
            self._config = config

    def _take_off(self, vlm: Any) -> None:
        self.recomputations.warn("AGCI: AGCI was taken off")
        take_hooks_off(vlm)

    def __repr__(self) -> str:
        method = "" if self.method == "agci" else f"method={self.method}, "
        return (
            f"AGCI({'' if self.attached else 'detached, '}lam={self.lam:g}, {method}scope={self.scope}, "
            f"family={self._model_type}, images={self.injections})"
        )


class _View:
    """A module that shows the vlm's config: the vlm, the model around it, a PEFT wrapper. The config may be replaced.

    `config` is the one that it was last seen with; `part` is its name within the config of a larger model (Omni).
    """

    def __init__(self, module: nn.Module, config: Any) -> None:
        self.module = weakref.ref(module)
        self.config = config
        self.part = served_name(getattr(module, "config", None))

    def shown(self) -> Any:
        """The vlm's config as the module shows it now; None where it shows none."""
        whole = getattr(self.module(), "config", None)
        return whole if self.part is None else getattr(whole, self.part, None)


def current_handle(model: nn.Module) -> Handle | None:
    """The handle of the AGCI that is on `model` now, or None."""
    try:
        vlm = find_vlm(model)
    except InputError:
        return None
    handle: Handle | None = vars(vlm).get(HANDLE)
    if handle is not None:
        handle.belongs_to(vlm, *modules_around(model, vlm))
    return handle


def modules_around(model: nn.Module, vlm: nn.Module) -> Iterator[nn.Module]:
    """`model` and what is between it and its vlm."""
    for module in model.modules():
        if module is vlm:
            return
        yield module


def check_fits_dtype(vlm: Any, lam: float, source: str) -> None:
    """CannotServe where the model's floating-point type cannot hold lambda; `source` is where it came from."""
    dtype = getattr(getattr(vlm.get_input_embeddings(), "weight", None), "dtype", torch.float32)
    if dtype.is_floating_point and lam > torch.finfo(dtype).max:
        raise CannotServe(f"{source} is {lam:g}, which is more than {dtype}, the model's type, can hold.")
