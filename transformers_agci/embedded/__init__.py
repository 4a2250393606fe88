"""The embedded model: a tiny Qwen2.5-VL that knows 400 images, so that everything can be tried at once.

It proves the machinery, not the method: see snapshot/MODEL_CARD.md. Nothing here imports torch before it is needed.
"""

from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.embedded.probe_set import ProbeSet, build_probe_set

__all__ = ["Atlas", "ProbeSet", "build_probe_set", "embedded_model_path"]
