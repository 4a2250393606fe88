"""AGCI (Adaptive Global Context Injection, arXiv 2509.21984) for stock Hugging Face transformers.

`import transformers_agci as transformers` is a drop-in: every public name of transformers resolves here, and models
whose config.json carries lambda get AGCI.
"""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers_agci.api.benchmark import benchmark
    from transformers_agci.api.build import build_probe, build_similarity
    from transformers_agci.api.check import check_data
    from transformers_agci.api.compare import compare
    from transformers_agci.api.conversations import build_scienceqa, check_images, sample_instruct
    from transformers_agci.api.conversion import convert_llava
    from transformers_agci.api.data import composites, probe_data, published_data
    from transformers_agci.api.demo import demo
    from transformers_agci.api.families import supported_families
    from transformers_agci.api.flow import flow, flow_of
    from transformers_agci.api.models import load, wrap
    from transformers_agci.api.occlusion import occlusion, read_occlusion
    from transformers_agci.api.probe import probe
    from transformers_agci.api.report import make_report
    from transformers_agci.api.results import read_probe
    from transformers_agci.api.ruler import ruler, ruler_calibration
    from transformers_agci.api.score import score
    from transformers_agci.api.set_lambda import set_lambda
    from transformers_agci.api.similarity import read_similarity, similarity
    from transformers_agci.api.study import study
    from transformers_agci.api.sweep import plan, sweep
    from transformers_agci.api.training import check_recipe, merge_lora, train_lora
    from transformers_agci.errors import InputError
    from transformers_agci.families import SUPPORTED_FAMILIES
    from transformers_agci.method.attach import agci, attach
    from transformers_agci.method.handle import Handle
    from transformers_agci.method.image_embeddings import image_embeddings
    from transformers_agci.method.injection import inject_global_context
    from transformers_agci.method.lam import LAMBDA_KEY
    from transformers_agci.method.self_check import self_check

__version__ = "0.1.0"

# Public name -> module that holds it, imported on first use (PEP 562): `import transformers_agci` loads no torch.
_PUBLIC = {
    "InputError": "transformers_agci.errors",
    "LAMBDA_KEY": "transformers_agci.method.lam",
    "SUPPORTED_FAMILIES": "transformers_agci.families",
    "Handle": "transformers_agci.method.handle",
    "agci": "transformers_agci.method.attach",
    "attach": "transformers_agci.method.attach",
    "image_embeddings": "transformers_agci.method.image_embeddings",
    "inject_global_context": "transformers_agci.method.injection",
    "self_check": "transformers_agci.method.self_check",
    # what the commands do: see transformers_agci.api
    "load": "transformers_agci.api.models",
    "wrap": "transformers_agci.api.models",
    "probe_data": "transformers_agci.api.data",
    "published_data": "transformers_agci.api.data",
    "composites": "transformers_agci.api.data",
    "build_probe": "transformers_agci.api.build",
    "build_similarity": "transformers_agci.api.build",
    "check_data": "transformers_agci.api.check",
    "probe": "transformers_agci.api.probe",
    "read_probe": "transformers_agci.api.results",
    "similarity": "transformers_agci.api.similarity",
    "read_similarity": "transformers_agci.api.similarity",
    "occlusion": "transformers_agci.api.occlusion",
    "read_occlusion": "transformers_agci.api.occlusion",
    "flow": "transformers_agci.api.flow",
    "flow_of": "transformers_agci.api.flow",
    "benchmark": "transformers_agci.api.benchmark",
    "score": "transformers_agci.api.score",
    "make_report": "transformers_agci.api.report",
    "sweep": "transformers_agci.api.sweep",
    "plan": "transformers_agci.api.sweep",
    "compare": "transformers_agci.api.compare",
    "ruler": "transformers_agci.api.ruler",
    "ruler_calibration": "transformers_agci.api.ruler",
    "study": "transformers_agci.api.study",
    "demo": "transformers_agci.api.demo",
    "check_recipe": "transformers_agci.api.training",
    "train_lora": "transformers_agci.api.training",
    "merge_lora": "transformers_agci.api.training",
    "sample_instruct": "transformers_agci.api.conversations",
    "check_images": "transformers_agci.api.conversations",
    "build_scienceqa": "transformers_agci.api.conversations",
    "set_lambda": "transformers_agci.api.set_lambda",
    "convert_llava": "transformers_agci.api.conversion",
    "supported_families": "transformers_agci.api.families",
}

__all__ = [*_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if PathFinder.find_spec(f"{__name__}.{name}", __path__) is not None:
        return import_module(f"{__name__}.{name}")
    return _from_transformers(name)


def _from_transformers(name: str) -> Any:
    """The drop-in: transformers' `name`, once the config key is honoured in this process."""
    transformers = import_module("transformers")
    try:
        found = getattr(transformers, name)
    except AttributeError:
        raise AttributeError(f"neither {__name__!r} nor 'transformers' has an attribute {name!r}") from None
    import_module("transformers_agci.method.autoload").activate()
    return found


def __dir__() -> list[str]:
    transformers = sys.modules.get("transformers")
    return sorted({*globals(), *_PUBLIC, *(dir(transformers) if transformers else ())})
