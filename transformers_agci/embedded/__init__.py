"""The embedded model: a tiny Qwen2.5-VL that knows 400 images, so that everything can be tried at once.

It proves the machinery, not the method: see snapshot/MODEL_CARD.md. Nothing here imports torch before it is needed, and
where the model lies can be asked without numpy and pillow, which the help of every command does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers_agci.embedded.location import embedded_model_path

if TYPE_CHECKING:
    from transformers_agci.embedded.atlas import Atlas
    from transformers_agci.embedded.probe_set import ProbeSet, build_probe_set

__all__ = ["Atlas", "ProbeSet", "build_probe_set", "embedded_model_path"]

_LATER = {"Atlas": "atlas", "ProbeSet": "probe_set", "build_probe_set": "probe_set"}  # name -> the file that holds it


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
