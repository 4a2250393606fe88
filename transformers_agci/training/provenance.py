"""What an adapter was trained on, as far as its folder tells: the family and the lambda."""

from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.inference.checkpoint_files import read_config
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text, validate_lambda
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.training.checks import Checkpoint
from transformers_agci.training.outputs import MANIFEST, read_manifest

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def check_same_family(checkpoint: Checkpoint, adapter: Path, base: str | None) -> None:
    """InputError if what lies beside the adapter, or the base model that it names, is of another family.

    InternVL3-8B and Qwen2.5-VL-7B, for instance, have the same language model: the adapter of one fits into the other.
    """
    found = trained_family(adapter, base)
    if found is None or checkpoint.model_type in found[0]:
        return
    trained, source = found
    name = " or ".join(SUPPORTED_FAMILIES[one].name if one in SUPPORTED_FAMILIES else one for one in trained)
    here = SUPPORTED_FAMILIES[checkpoint.model_type].name
    raise InputError(
        f"The adapter {adapter} was trained on {name} ({source}), but the checkpoint {checkpoint.folder} "
        f"is {here}; merge it into the checkpoint it was trained on."
    )


def trained_family(adapter: Path, base: str | None) -> tuple[tuple[str, ...], str] | None:
    """model_types and who says so: the processor saved with the adapter, or its base model; None where nothing does.

    Families may share a processor (Qwen3-VL and its mixture of experts), so that there may be several.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for file in (adapter / name for name in PROCESSOR_FILES):
        processor = _json(file).get("processor_class")
        families = tuple(name for name in SUPPORTED_FAMILIES if PROCESSOR_MAPPING_NAMES.get(name) == processor)
        if processor and families:
            return families, f"{file.name} beside it says {processor}"
    model_type = _json(Path(base) / "config.json").get("model_type") if base else None
    return ((str(model_type),), f"its base model {base}") if model_type else None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one where there is none."""
    try:
        return read_json_object(path)
    except InputError:
        return {}


def lambda_warning(checkpoint: Checkpoint, adapter: Path, base: str | None) -> list[str]:
    """What is lost when the two lambdas differ, as sentences; nothing where they agree."""
    trained, source = trained_lambda(checkpoint, adapter, base)
    here = f"{checkpoint.folder}/config.json"
    remedy = f"agci set-lambda {checkpoint.folder} {lambda_text(trained) if trained else 'LAMBDA'}"
    if checkpoint.lam is None and trained is None:
        return [
            f"{here} has no {LAMBDA_KEY}, and nothing says with which lambda the adapter was trained: if it was "
            f"trained with AGCI, the merged checkpoint runs without it ({remedy} before merging keeps it)."
        ]
    if checkpoint.lam is None and trained:
        return [
            f"{here} has no {LAMBDA_KEY}, but the adapter was trained with lambda {lambda_text(trained)} "
            f"({source}): the merged checkpoint would run without AGCI ({remedy} before merging keeps it)."
        ]
    if trained is not None and checkpoint.lam != trained and (checkpoint.lam or trained):
        return [
            f"{here} says lambda {lambda_text(checkpoint.lam or 0.0)}, but the adapter was trained with "
            f"{lambda_text(trained)} ({source}); the merged checkpoint carries the former."
        ]
    return []


def trained_lambda(checkpoint: Checkpoint, adapter: Path, base: str | None) -> tuple[float | None, str]:
    """The lambda of the training, and who says so; (None, "") where nothing does.

    Our own manifest says it. For an adapter of LLaMA-Factory's the base model that it names is asked, if that is
    another folder than the one it is merged into.
    """
    manifest = read_manifest(adapter)
    if manifest is not None:
        lam = validate_lambda(manifest["settings"].get("lambda"), f"lambda in {adapter / MANIFEST}")
        return lam, f"its {MANIFEST}"
    if base and Path(base).is_dir() and Path(base).resolve() != checkpoint.folder.resolve():
        try:
            return float(read_config(Path(base)).get(LAMBDA_KEY, 0.0)), f"{base}/config.json"
        except (InputError, TypeError, ValueError):
            return None, ""
    return None, ""
