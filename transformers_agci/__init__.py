"""AGCI (Adaptive Global Context Injection, arXiv 2509.21984) for stock Hugging Face transformers."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that holds it, imported on first use (PEP 562): `import transformers_agci` loads no torch.
_PUBLIC = {
    "InputError": "transformers_agci.errors",
    "LAMBDA_KEY": "transformers_agci.lam",
    "SUPPORTED_FAMILIES": "transformers_agci.families",
    "Handle": "transformers_agci.hooks",
    "agci": "transformers_agci.hooks",
    "attach": "transformers_agci.hooks",
    "image_embeddings": "transformers_agci.hooks",
    "inject_global_context": "transformers_agci.injection",
}

__all__ = [*_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
