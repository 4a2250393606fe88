"""vLLM's general plugin: a model whose config carries lambda is built as a class of ours that injects.

vLLM calls `register` in each of its processes, possibly more than once, before a model is built. Nothing of vLLM's is
changed but the one function that says which class a model is built as; where the key stands in the config, it answers
with a subclass of the stock class:

    stock     Qwen2_5_VLForConditionalGeneration                     no key
    subclass  the same name, `embed_multimodal` injects              "global_context_broadcast_lambda": 0.5

The key comes from config.json or from `hf_overrides`; with TRANSFORMERS_AGCI=0 every model is the stock class.
"""

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.method.autoload import SWITCH, built_for_another_engine, switched_off
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.vllm.injection import IMAGE_MARK, Served, carries_key, inject, served_by
from transformers_agci.vllm.marks import marking
from transformers_agci.vllm.worker import STORES, end_with_parent

# Below vLLM's own logger, whose handlers and level it then has.
_log = logging.getLogger("vllm.transformers_agci")

_local = threading.local()


def register() -> None:
    """The entry point `vllm.general_plugins`; a second call does nothing.

    The switch is read where a model is built: vLLM calls this once for all engines of a process, and not again in the
    processes that it forks from there.
    """
    end_with_parent()
    say = _log.debug if switched_off() else _log.error
    try:
        from vllm.model_executor.model_loader import utils
        from vllm.model_executor.models.interfaces import SupportsMultiModal

        stock = utils.get_model_architecture
        known = callable(getattr(SupportsMultiModal, "embed_multimodal", None))
    except (ImportError, AttributeError) as error:
        say("AGCI cannot serve models in this version of vLLM (%s): %s does nothing.", error, LAMBDA_KEY)
        return
    if not known:
        say("AGCI needs vLLM's `embed_multimodal`, which this version lacks: %s does nothing.", LAMBDA_KEY)
        return
    if not getattr(stock, "chooses_agci", False):
        _replace(stock, choosing(stock))


def _replace(stock: Any, ours: Any) -> None:
    """In every module of vLLM that has imported it: what prepares requests and one of the loaders have, by now."""
    name = stock.__name__
    for module in [each for place, each in sys.modules.items() if place.startswith("vllm.")]:
        if vars(module).get(name) is stock:
            setattr(module, name, ours)


def choosing(stock: Callable[[Any], tuple[type, str]]) -> Callable[[Any], tuple[type, str]]:
    """vLLM's choice of the class that a model is built as, with ours where the config carries the key."""

    @functools.wraps(stock)
    def get_model_architecture(model_config: Any) -> tuple[type, str]:
        model_class, architecture = stock(model_config)
        if switched_off() or getattr(_local, "building", False):
            return model_class, architecture
        if getattr(model_config, "runner_type", None) == "draft":  # proposes tokens to a model that has AGCI
            return (left_alone(model_class) if carries_key(model_config.hf_config) else model_class), architecture
        served = served_by(model_config.hf_config, model_class.__name__, model_config.get_hidden_size())
        return (model_class if served is None else injecting(model_class, served)), architecture

    get_model_architecture.chooses_agci = True  # type: ignore[attr-defined]
    return get_model_architecture


def left_alone(model_class: type) -> type:
    """A subclass, under the same name, of whose modules those of transformers get nothing as they are built."""
    base: Any = model_class

    class LeftAlone(base):  # type: ignore[misc]
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            with _building():
                super().__init__(vllm_config=vllm_config, prefix=prefix)

    return _named_like(model_class, LeftAlone)


def injecting(model_class: type, served: Served) -> type:
    """A subclass of vLLM's class, under the same name, whose images have been through the formula."""
    base: Any = model_class

    class Injecting(base):  # type: ignore[misc]
        agci = served
        agci_images = 0  # injected so far

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            check_engine(vllm_config, served)
            with _building():
                super().__init__(vllm_config=vllm_config, prefix=prefix)
            self._agci_config = vllm_config.model_config.hf_config
            say_once(vllm_config, served)

        def embed_multimodal(self, **inputs: Any) -> Any:
            stock = {name: value for name, value in inputs.items() if name != IMAGE_MARK}
            items, images = inject(served, self._agci_config, super().embed_multimodal(**stock), inputs)
            self.agci_images += images
            return items

    if served.model.modality != "image":
        Injecting._processor_factory = marking(base._processor_factory, served.model.modality)
    return _named_like(model_class, Injecting)


def _named_like(model_class: type, ours: type) -> type:
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(ours, name, getattr(model_class, name))
    return ours


@contextlib.contextmanager
def _building() -> Iterator[None]:
    """While a model is built, its decoder is, too, in the same way and with the same config: that is no model."""
    _local.building = True
    try:
        with built_for_another_engine():
            yield
    finally:
        _local.building = False


def check_engine(vllm_config: Any, served: Served) -> None:
    """InputError where vLLM is asked for what goes around the model's Python method."""
    if getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False):
        raise InputError(
            f"AGCI with {served.words} cannot be served with `cudagraph_mm_encoder`: the recorded encoder bypasses it. "
            "Leave it off, or set TRANSFORMERS_AGCI=0 for the unmodified model."
        )


def say_once(vllm_config: Any, served: Served) -> None:
    """One line in the log of an engine, from the first of its workers."""
    parallel = vllm_config.parallel_config
    if getattr(parallel, "rank", 0) != 0:
        return
    _log.info("AGCI is on: %s. %s=0 turns it off.", served.words, SWITCH)
    stores = [name for name in STORES if getattr(vllm_config, name, None)]
    if stores:
        _log.warning(
            "%s: what is stored there belongs to this lambda. Engines of another lambda need a store of their own.",
            ", ".join(stores),
        )
