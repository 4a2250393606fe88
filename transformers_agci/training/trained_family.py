"""The family that an adapter was trained on: language models of two families can have the same layers."""

import json
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.training.checks import Checkpoint

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def refuse_another_family(checkpoint: Checkpoint, adapter: Path, base: str | None) -> None:
    """InputError if what lies beside the adapter, or the base model that it names, is of another family.

    InternVL3-8B and Qwen2.5-VL-7B, for instance, have the same language model: the adapter of one fits into the other.
    """
    found = trained_family(adapter, base)
    if found is None or found[0] == checkpoint.model_type:
        return
    trained, source = found
    name = SUPPORTED_FAMILIES[trained].name if trained in SUPPORTED_FAMILIES else trained
    here = SUPPORTED_FAMILIES[checkpoint.model_type].name
    raise InputError(
        f"The adapter {adapter} was trained on {name} ({source}), but the checkpoint {checkpoint.folder} "
        f"is {here}; merge it into the checkpoint it was trained on."
    )


def trained_family(adapter: Path, base: str | None) -> tuple[str, str] | None:
    """model_type and who says so: the processor saved with the adapter, or its base model; None where nothing does."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for file in (adapter / name for name in PROCESSOR_FILES):
        processor = _json(file).get("processor_class")
        families = [family for family in SUPPORTED_FAMILIES if PROCESSOR_MAPPING_NAMES.get(family) == processor]
        if families:
            return families[0], f"{file.name} beside it says {processor}"
    model_type = _json(Path(base) / "config.json").get("model_type") if base else None
    return (str(model_type), f"its base model {base}") if model_type else None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
