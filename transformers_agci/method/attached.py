"""What AGCI's handle and a rival's have in common: one method on one live model, which it does not keep alive."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

from transformers_agci.families import SUPPORTED_FAMILIES, Family, family_of
from transformers_agci.method.embeds_update import Recomputations
from transformers_agci.method.tested_versions import warn_of_untested_transformers


class AttachedMethod:
    """A method whose hooks are on a model: suspended, counted, copied with the model, taken off again.

    Attributes:
        injections: images that it acted on so far; every beam copy counts, nothing counts at strength 0.
        from_config: put on by the config key alone, without a call of `attach`.
        attached: False once it was taken off.
    """

    config_key: ClassVar[str]  # the model's config carries it while the method is on; `detach` restores what was there
    not_copied: ClassVar[tuple[str, ...]] = ("_vlm", "_count_lock", "recomputations")  # what `_start_empty` sets

    def __init__(self, vlm: Any) -> None:
        self.injections = 0
        self.from_config = False
        self.attached = True
        self._suspended = 0  # `suspended` blocks that are open
        self._model_type = family_of(vlm).model_type
        self._config = vlm.config
        self._found: list[tuple[Any, dict[str, Any]]] = []  # configs that may be written, and the key in them before
        self._remember(vlm.config)
        self._start_empty()
        warn_of_untested_transformers()

    def _start_empty(self) -> None:
        """Set what a copy does not take along."""
        self._vlm: weakref.ref[Any] | None = None  # a copy does not know its model until it is asked or called
        self._count_lock = threading.Lock()
        self.recomputations = Recomputations()  # calls whose backward pass must see the method as it was

    def _remember(self, config: Any) -> None:
        """Note what a config has under the key before it is written for the first time."""
        if all(config is not known for known, _ in self._found):
            self._found.append((config, {key: value for key, value in vars(config).items() if key == self.config_key}))

    @property
    def family(self) -> Family:
        """The row of the model's family."""
        return SUPPORTED_FAMILIES[self._model_type]

    def vlm(self) -> Any:
        """The module that the hooks are on; None where it is gone, or a copied handle has not met it yet."""
        return self._vlm() if self._vlm is not None else None

    def may_act(self) -> bool:
        """Whether the hooks may do something; a compiled graph may outlive them."""
        return self.attached and not self._suspended

    def count(self, images: int) -> None:
        """So many images more were acted on."""
        with self._count_lock:
            self.injections += images

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Stock within a `with` block: the hooks stay in their order and do nothing."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def detach(self) -> None:
        """Take the hooks off and restore every config as it was found. A second call does nothing."""
        if not self.attached:
            return
        self.attached = False
        vlm = self.vlm()
        if vlm is not None:
            self._take_off(vlm)
        for config, found in self._found:
            vars(config).pop(self.config_key, None)
            vars(config).update(found)  # not by setattr: setting the key turns the method on (autoload.py)

    def _take_off(self, vlm: Any) -> None:
        """Undo what was done to the modules of this model."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """What a copied or pickled model takes along: its own handle, with everything but the model it came from."""
        kept = {name: value for name, value in vars(self).items() if name not in self.not_copied}
        return kept | {"_suspended": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_empty()
