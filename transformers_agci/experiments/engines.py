"""Which engine answers, and how it is started: the one place that knows all of them.

open_engine(EngineOptions(), LoadOptions("Qwen/Qwen2.5-VL-3B-Instruct"))
open_engine(EngineOptions("openai", ServedOptions("http://localhost:8000/v1")), LoadOptions("served-name"))
"""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.served.client import ServedOptions
from transformers_agci.vllm.options import VllmOptions

if TYPE_CHECKING:
    from transformers_agci.inference.engine import Engine

ENGINES = ("transformers", "vllm", "openai")
NEEDS_THE_MODEL = "needs what happens inside the model, which only the engine transformers shows"


@dataclass(frozen=True)
class EngineOptions:
    """An engine's name and its own options; those of another engine are refused, not ignored."""

    name: str = "transformers"
    served: ServedOptions = field(default_factory=ServedOptions)
    vllm: VllmOptions = field(default_factory=VllmOptions)

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise InputError(f"`engine` must be one of {', '.join(ENGINES)}, but is {self.name!r}.")
        check_not_given(self.served, ServedOptions(), "openai", self.name)
        check_not_given(self.vllm, VllmOptions(), "vllm", self.name)


def check_not_given(options: Any, defaults: Any, belongs_to: str, engine: str) -> None:
    """InputError where an option of the engine `belongs_to` is given to another one."""
    if engine == belongs_to:
        return
    for name in [each.name for each in fields(options)]:
        if getattr(options, name) != getattr(defaults, name):
            raise InputError(f"`{name}` is for the engine {belongs_to}, but the engine is {engine}; omit it.")


def open_engine(options: EngineOptions, model: LoadOptions, *, weights: bool = True) -> "Engine":
    """The engine, ready to answer; `weights=False` for a dry run. Close it when the work is done."""
    if options.name == "transformers":
        from transformers_agci.inference.answering import TransformersEngine

        return TransformersEngine(load(model, weights=weights))
    if options.name == "vllm" and find_spec("transformers_agci.vllm.engine") is not None:
        from transformers_agci.vllm.engine import open_vllm

        return open_vllm(model, options.vllm, weights=weights)
    if options.name == "openai":
        from transformers_agci.inference.served.engine import ServedEngine

        check_not_given(model, LoadOptions(model.model), "transformers", "openai")
        return ServedEngine(model.model, options.served)
    raise InputError(f"The engine {options.name} is not part of this version.")
