"""A rival on a live model: put on, read and set, taken off.

    handle = attach(model, method="bapa")       # strength 1
    handle.strength = 0                         # stock, bit for bit
    handle.detach()                             # the model is as it was

What the hooks do stands in hooks.py. `attach` and `agci` of method/attach.py come here for every method of the table.
"""

import contextlib
import logging
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from transformers_agci.errors import CannotServe, InputError
from transformers_agci.families import family_of, find_vlm, require
from transformers_agci.method.attached import AttachedMethod
from transformers_agci.method.compiled_graphs import forget_graphs_of
from transformers_agci.method.handle import check_fits_dtype, modules_around
from transformers_agci.method.lam import POSITION_KEY, lambda_text, served_config
from transformers_agci.method.rivals import RIVALS
from transformers_agci.method.rivals.attention import RIVAL, attention_modules, give_back, register, use_ours
from transformers_agci.method.rivals.call_state import state
from transformers_agci.method.rivals.contrast import ContrastProcessor
from transformers_agci.method.rivals.declaration import Rival
from transformers_agci.method.rivals.hooks import check_combination, put_hooks_on, take_hooks_off
from transformers_agci.method.rivals.positions import check_packing

_log = logging.getLogger("transformers_agci")


class RivalHandle(AttachedMethod):
    """A rival on one model; made by `attach`. It does not keep the model alive.

    Attributes:
        method: its name in the table.
        options: all its options with their values.
        injections: images that it acted on so far; every beam copy counts, nothing counts at strength 0.
        from_config: put on by the config key alone, without a call of `attach`.
    """

    config_key = POSITION_KEY
    not_copied = (*AttachedMethod.not_copied, "_outer", "_around")

    def __init__(self, vlm: Any, outer: Any, rival: Rival, strength: float, options: Mapping[str, Any]) -> None:
        super().__init__(vlm)
        self.method = rival.name
        self.options: dict[str, Any] = dict(options)
        self._strength = strength
        self.belongs_to(vlm, outer)
        self._attention = use_ours(self, vlm) if rival.uses_attention else None  # what the config said
        put_hooks_on(self, vlm, outer)

    def _start_empty(self) -> None:
        super()._start_empty()
        self._outer: weakref.ref[Any] | None = None  # the model with the output matrix, where there is one
        self._around: list[weakref.ref[nn.Module]] = []  # modules around the vlm, whose configs show the key, too

    @property
    def rival(self) -> Rival:
        """The row of the table."""
        return RIVALS[self.method]

    @property
    def strength(self) -> float:
        """How strong the method acts; 0 is stock. Validated when it is set."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        strength = self.rival.strength_of(value, "handle.strength")
        if not self.attached:  # the config is the model's own again, and is saved with it
            raise InputError(f"handle.strength cannot be set: {self.method} is detached from this model.")
        if (vlm := self.vlm()) is not None:
            check_fits_dtype(vlm, strength, "handle.strength")
        if strength != self._strength:
            self.recomputations.warn(f"{self.method}: its strength was changed")
        self._strength = strength
        self.write_key()

    def is_on(self) -> bool:
        """Whether the hooks have something to do."""
        return self.may_act() and self._strength != self.rival.neutral and not state.contrasting

    def outer(self) -> Any:
        """The model around the vlm that makes logits; None where there is none, or a copied handle cannot know it."""
        return self._outer() if self._outer is not None else None

    def belongs_to(self, vlm: Any, outer: Any = None) -> None:
        """Learn the model: a copy does when it is called first."""
        if outer is not None:
            self._outer = weakref.ref(outer)
        if self._vlm is None:
            self._vlm = weakref.ref(vlm)
            self._config = vlm.config

    def shown_by(self, *modules: nn.Module) -> None:
        """Learn the modules around the vlm: a model may have a config that its vlm does not have."""
        known = [reference() for reference in self._around]
        self._around += [weakref.ref(module) for module in modules if all(module is not one for one in known)]

    def _take_off(self, vlm: Any) -> None:
        self.recomputations.warn(f"{self.method}: it was taken off")
        take_hooks_off(vlm, self.outer())
        if self._attention is not None:
            give_back(vlm, self._attention)

    def logits_processor(self, inputs: Mapping[str, torch.Tensor], model: Any = None) -> ContrastProcessor | None:
        """What `generate(**inputs, logits_processor=[...])` needs of a method with a second pass; None of others.

        `inputs` are those of that call, pixels included; `model` is needed where the handle came with a copy.
        """
        rule = self.rival.contrast
        if rule is None or not self.is_on() or not rule.active(self._strength, self.options):
            return None
        outer = self.outer() if model is None else model
        if outer is None:
            raise InputError(f"{self.method} runs the model a second time: say which, logits_processor(inputs, model).")
        return ContrastProcessor(self, outer, inputs)

    def write_key(self) -> None:
        """BaPA's own key follows its strength, so that a saved model has it; the other methods are not saved."""
        if self.method != "bapa":
            return
        modules = (self.vlm(), *(reference() for reference in self._around))
        shown = (served_config(getattr(module, "config", None)) for module in modules)
        for config in [self._config, *(one for one in shown if type(one) is type(self._config))]:
            self._remember(config)
            vars(config)[POSITION_KEY] = bool(self._strength)

    def __repr__(self) -> str:
        numbers = {"strength": self.strength, **self.options}
        options = "".join(f"{name}={lambda_text(value)}, " for name, value in numbers.items())
        note = ", reconstruction" if self.rival.is_reconstruction else ""
        return (
            f"Rival({self.method}{note}, {'' if self.attached else 'detached, '}{options}"
            f"family={self._model_type}, images={self.injections})"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._attention is not None:
            register()


def attach_rival(model: nn.Module, method: str, strength: float | None, options: Mapping[str, Any]) -> RivalHandle:
    """Put a rival of the table on a live model; arguments and errors as in `attach` of method/attach.py."""
    rival = RIVALS[method]
    given = rival.default if strength is None else rival.strength_of(strength, "strength")
    settings = rival.settings(options)
    vlm = find_vlm(model)
    found = current_rival(model)
    if found is not None and not found.from_config:
        raise InputError(f"{found!r} is already attached to this model: set its strength, or detach it first.")
    check_fits_dtype(vlm, given, "strength")
    check_combination(vlm, rival)
    _check_seam(vlm, rival)
    outer = _with_output_matrix(model, vlm)
    if outer is None and (rival.contrast is not None or (rival.scores is not None and rival.scores.weigh is not None)):
        raise CannotServe(
            f"{rival.name} needs the model's logits, but {type(model).__name__} has no output matrix: give the model "
            "around it (...ForConditionalGeneration)."
        )
    if found is not None:
        found.detach()
    try:
        handle = RivalHandle(vlm, outer, rival, given, settings)
    except InputError:
        if found is not None:
            attach_from_position_key(model)
        raise
    handle.shown_by(*modules_around(model, vlm))
    handle.write_key()
    forget_graphs_of(vlm)
    _say_what_to_know(handle, vlm, strength is not None)
    return handle


def _say_what_to_know(handle: RivalHandle, vlm: Any, has_strength: bool) -> None:
    """Lines of the log for what a user would not see: off-label use, a second pass, a method that does nothing."""
    rival, rule = handle.rival, handle.rival.scores
    if rival.note:
        _log.warning("%s (%s): %s.", rival.title, rival.name, rival.note)
    if rival.contrast is not None:
        _log.warning(
            "%s has a second pass, which generate() alone does not run: give it "
            "logits_processor=[handle.logits_processor(inputs)]. The package's own commands do that.",
            rival.name,
        )
    layers: list[Any] = attention_modules(vlm)
    if rule is not None and not any(rule.layers(handle.options, layer.layer_idx) for layer in layers):
        _log.warning("%r raises no score: none of this model's layers is among those of its options.", handle)
    if not has_strength and handle.strength == rival.neutral:
        _log.warning(
            "%s is at its neutral strength 0 and does nothing until a strength is given; its authors report %g.",
            rival.name,
            rival.published,
        )


def attach_from_position_key(model: nn.Module) -> RivalHandle:
    """BaPA as the published key in a model's config asks for it; `attach` takes it over."""
    handle = current_rival(model)
    if handle is None:
        handle = attach_rival(model, "bapa", 1.0, {})
        handle.from_config = True
    return handle


@contextlib.contextmanager
def rival_scope(
    model: nn.Module, method: str, strength: float | None, options: Mapping[str, Any]
) -> Iterator[RivalHandle]:
    """A rival within a `with` block. What another one was before is put back at the end."""
    found = current_rival(model)
    if found is not None and found.method != method and not found.from_config:
        raise InputError(f"{found!r} is already attached to this model: detach it first.")
    if found is not None and found.method == method:
        kept = found.strength, found.options
        try:
            found.options = found.rival.settings(options)
            found.strength = found.rival.default if strength is None else strength
            yield found
        finally:
            found.strength, found.options = kept
        return
    from_config = found is not None
    handle = attach_rival(model, method, strength, options)
    try:
        yield handle
    finally:
        handle.detach()
        if from_config:
            attach_from_position_key(model)


def current_rival(model: nn.Module) -> RivalHandle | None:
    """The handle of the rival that is on `model` now, or None."""
    try:
        vlm = find_vlm(model)
    except InputError:
        return None
    handle: RivalHandle | None = vars(vlm).get(RIVAL)
    if handle is not None:
        handle.belongs_to(vlm)
        handle.shown_by(*modules_around(model, vlm))
    return handle


def _generates(vlm: Any) -> bool:
    """Whether the vlm makes logits itself, as Llama 4's does."""
    return callable(getattr(vlm, "can_generate", None)) and bool(vlm.can_generate())


def _with_output_matrix(model: nn.Module, vlm: nn.Module) -> nn.Module | None:
    """The innermost module around the vlm that makes logits of what it returns."""
    found = None
    for module in model.modules():
        if module is vlm:
            return vlm if found is None and _generates(vlm) else found
        if callable(getattr(module, "get_output_embeddings", None)) and hasattr(module, "config"):
            found = module if vlm in set(module.modules()) else found
    return found


def _check_seam(vlm: Any, rival: Rival) -> None:
    """CannotServe where the model has no place for the method, with what to take instead."""
    family = family_of(vlm)
    if rival.positions is not None or rival.mask is not None:
        require(family, "positions", family.positions)
    check_packing(rival, vlm)
