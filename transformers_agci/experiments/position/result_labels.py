"""What the manifest beside a result says of it: method, lambda, model, builds, and from them its name in tables."""

import sys
from pathlib import Path
from typing import Any, TypeGuard

from transformers_agci.errors import InputError
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage import manifest
from transformers_agci.storage.json_file import read_json_object


def label_of(path: str | Path) -> str:
    """How a result is named in tables and maps: its lambda or strength and engine where the manifest beside it
    tells, else the file's name."""
    settings = _settings_of(path)
    lam, method = settings.get("lambda"), settings.get("method", "agci")
    engine = settings.get("engine", "transformers")
    if lam == "as served":
        return f"{Path(path).stem}, as served by {engine}"
    if not _is_number(lam):
        return Path(path).stem
    name = "AGCI" if method == "agci" else str(method)
    strength = settings.get("strength")
    if strength and _is_number(strength):
        note = ", reconstruction" if "reconstruction" in str(settings.get("method_note", "")) else ""
        label = f"{name} (strength {lambda_text(float(strength))}{note})"
    else:
        label = f"{name} (lambda {lambda_text(float(lam))})" if lam else "baseline (lambda 0)"
    return label if engine == "transformers" else f"{label}, {engine}"


def method_and_lambda(path: str | Path) -> tuple[str, float] | None:
    """The method of a result and its lambda, or what a rival calls its strength, where the manifest beside it tells."""
    settings = _settings_of(path)
    lam = settings.get("strength") or settings.get("lambda")
    if not _is_number(lam):
        return None
    return str(settings.get("method", "agci")), float(lam)


def is_stock(path: str | Path) -> bool | None:
    """Whether a result is of the model as it is, at lambda 0; None where no manifest beside it tells."""
    made_with = method_and_lambda(path)
    return None if made_with is None else made_with[1] == 0


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether this is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def model_of(path: str | Path) -> str:
    """The name of the model that a result is of, without the folder that it lies in; "" where no manifest tells."""
    return Path(str(_part_of_manifest(path, "notes").get("model") or "")).name


def builds_of(path: str | Path) -> list[str]:
    """The models and builds that a server named, by the manifest beside a result."""
    runs = _manifest_of(path).get("runs")
    builds = [run.get("builds") for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
    return [name for each in builds if isinstance(each, dict) for name in each]


def _settings_of(path: str | Path) -> dict[str, Any]:
    return _part_of_manifest(path, "settings")


def _part_of_manifest(path: str | Path, part: str) -> dict[str, Any]:
    found = _manifest_of(path).get(part)
    return found if isinstance(found, dict) else {}


def _manifest_of(path: str | Path) -> dict[str, Any]:
    """The manifest beside a result; empty where there is none, or no result of this name can be."""
    if not Path(path).name:
        return {}
    try:
        return read_json_object(manifest.path_of(Path(path)))
    except InputError:
        return {}
