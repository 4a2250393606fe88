"""The model of a run: from a checkpoint, from memory, or behind a server."""

import contextlib
import difflib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import check_kinds, checked
from transformers_agci.embedded.location import EMBEDDED, embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import NEEDS_THE_MODEL, EngineOptions, open_engine
from transformers_agci.inference.answering import TransformersEngine, as_engine
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.live import as_it_is_now, live_model
from transformers_agci.inference.load import LoadedModel, LoadOptions
from transformers_agci.inference.served.client import ServedOptions
from transformers_agci.method.self_check import evaluating
from transformers_agci.vllm.options import VllmOptions

Model = Engine | LoadedModel | str | Path


@checked
def load(model: str | Path = EMBEDDED, engine: str = "transformers", **options: Any) -> Engine:
    """A model to run experiments on: a folder or hub id, a served model's name, or the embedded model.

    `options` are those of the commands: `dtype`, `device`, `device_map`, `attn_implementation`, `revision`,
    `load_in_4bit`, `min_pixels`, `max_pixels`, ... for a checkpoint (a dtype by its name or as torch's own);
    `base_url`, `concurrency`, ... for the engine openai; `tensor_parallel_size`, ... for vllm. Raises InputError for
    whatever is wrong with them or the checkpoint.

    >>> from transformers_agci import load
    >>> load().description
    'Qwen2.5-VL, model embedded'
    """
    groups = (LoadOptions, ServedOptions, VllmOptions)
    given: dict[type, dict[str, Any]] = {group: {} for group in groups}
    known = {each.name: group for group in groups for each in fields(group) if each.name != "model"}
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise InputError(f"`load` has no option `{name}`.{hint} It has: {', '.join(known)}.")
        given[known[name]][name] = str(value).removeprefix("torch.") if name == "dtype" else value
    for group in groups:
        check_kinds(group, given[group])
    how = EngineOptions(engine, ServedOptions(**given[ServedOptions]), VllmOptions(**given[VllmOptions]))
    return open_engine(how, LoadOptions(_folder(model, engine), **given[LoadOptions]))


def _folder(model: str | Path, engine: str) -> str:
    if str(model) != EMBEDDED:
        return str(model)
    if engine == "openai":
        raise InputError("`model` is needed with the engine openai: the name by which the server knows the model.")
    return str(embedded_model_path())


@checked
def wrap(model: Any, processor: Any) -> Engine:
    """A live model with its processor, neither of them changed: attached, with LoRA, quantised, in training.

    A run answers in eval mode and leaves every module as it found it. Without `lambdas` it runs at the lambda that the
    model has now.

    >>> from transformers import AutoModelForImageTextToText, AutoProcessor
    >>> from transformers_agci import wrap
    >>> from transformers_agci.embedded import embedded_model_path
    >>> checkpoint = embedded_model_path()
    >>> model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    >>> live = wrap(model, AutoProcessor.from_pretrained(checkpoint))
    >>> live.description.endswith("in memory")
    True
    """
    if not hasattr(model, "modules"):
        raise InputError(f"`model` must be a model of transformers, but is a {type(model).__name__}.")
    return TransformersEngine(live_model(model, processor))


def as_model(model: Model) -> Engine:
    """What an experiment is given, as an engine; a name or path is loaded."""
    if isinstance(model, str | Path):
        return load(model)
    if not isinstance(model, LoadedModel) and not hasattr(model, "answering"):
        raise InputError(
            f"`model` must be a folder, a hub id or what `load` and `wrap` give, but is a {type(model).__name__}: a "
            "live model is given as transformers_agci.wrap(model, processor)."
        )
    return as_engine(model)


@contextlib.contextmanager
def answering(model: Model) -> Iterator[Engine]:
    """The engine for one run: in eval mode, closed at the end if it was opened here.

    A run sets lambda and method on the model; a second thread with the same model waits until it is through.
    """
    engine = as_model(model)
    with contextlib.ExitStack() as stack:
        if isinstance(engine, TransformersEngine):
            stack.enter_context(_lock_of(engine.loaded.model))
            stack.enter_context(evaluating(engine.loaded.model))
            engine = TransformersEngine(as_it_is_now(engine.loaded))
        if isinstance(model, str | Path):
            stack.callback(engine.close)
        yield engine


_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


def _lock_of(model: Any) -> "threading.RLock":
    with _locks_lock:
        return _locks.setdefault(model, threading.RLock())


@contextlib.contextmanager
def looking_inside(model: Model, what: str) -> Iterator[LoadedModel]:
    """The loaded model for an experiment that looks into it; InputError for an engine that shows nothing of it."""
    with answering(model) as engine:
        if not isinstance(engine, TransformersEngine):
            raise InputError(f"`{what}` {NEEDS_THE_MODEL}: the engine {engine.name} answers, and no more.")
        yield engine.loaded
