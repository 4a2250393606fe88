"""Lets stock transformers honour "global_context_broadcast_lambda" in config.json; TRANSFORMERS_AGCI=0 turns it off.

transformers_agci.pth (from Python 3.15 on transformers_agci.start) calls `start` whenever Python starts. From then on a
finder waits for `transformers.modeling_utils`; once a program has imported it, method/autoload.py does the rest. The
finder stays: the first import may fail, be only looked up (`importlib.util.find_spec`), or be followed by a reload.

This file imports nothing but the standard library, prints a line only when something is wrong, and never stops Python.
"""

import os
import sys

TYPE_CHECKING = False  # the type checker's name for its own time: `typing` would cost every start of Python 5 ms
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

WAITED_FOR = ("transformers.modeling_utils", "peft.peft_model")  # peft's wrapper shows the model's lambda, too


class Finder:
    """Finds the modules that are waited for as Python does, and has AGCI activated after one was run."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """The spec of such a module; None for every other one, so that Python asks the next finder."""
        if name not in WAITED_FOR:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = None if isinstance(finder, Finder) or find_spec is None else find_spec(name, path, target)
            if spec is not None:
                _activate_after(spec.loader)
                return spec
        return None


def start() -> None:
    """Put the finder first in line, unless the switch is off; a second call does nothing."""
    if os.environ.get("TRANSFORMERS_AGCI") != "0" and not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def _activate_after(loader: "Any") -> None:
    run = getattr(loader, "exec_module", None)
    if run is None or getattr(run, "activates_agci", False):
        return

    def exec_module(module: "ModuleType") -> None:
        run(module)
        _activate()

    exec_module.activates_agci = True  # type: ignore[attr-defined]
    try:
        loader.exec_module = exec_module
    except Exception as error:
        _complain(error)


def _activate() -> None:
    try:
        from transformers_agci.method import autoload

        autoload.activate()
    except Exception as error:
        _complain(error)


def _complain(error: Exception) -> None:
    print(f"transformers_agci: lambda in config.json does nothing: {error!r}", file=sys.stderr)
