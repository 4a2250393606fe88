"""The supported model families: everything that differs between them, one file per kin.

`SUPPORTED_FAMILIES` is the table; nothing outside this folder asks for a model_type. A declaration loads no torch.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError
from transformers_agci.families import gemma, internvl, llava, qwen
from transformers_agci.families.declaration import Family, ForwardCall, Lacks, RefusedFamily, require

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "REFUSED_FAMILIES",
    "SUPPORTED_FAMILIES",
    "Family",
    "ForwardCall",
    "Lacks",
    "family_of",
    "find_vlm",
    "has_image_features",
    "is_vlm",
    "paper_families",
    "require",
    "unsupported",
    "unsupported_config",
]


def _table(rows: Iterable[Family]) -> Mapping[str, Family]:
    return MappingProxyType({family.model_type: family for family in rows})


SUPPORTED_FAMILIES = _table((*qwen.FAMILIES, *gemma.FAMILIES, *internvl.FAMILIES, *llava.FAMILIES))
REFUSED_FAMILIES: Mapping[str, RefusedFamily] = MappingProxyType({})


def paper_families() -> Mapping[str, Family]:
    """The families that the paper evaluates, which scripts/ and configs/ are for."""
    return _table(family for family in SUPPORTED_FAMILIES.values() if family.in_paper)


def find_vlm(model: "nn.Module") -> "nn.Module":
    """The module inside `model` that merges image features into the text and calls the decoder.

    Takes the ForConditionalGeneration model, its inner model, or any wrapper around one (PEFT, DDP).

    Raises:
        InputError: no such module, two of them, or one of a family that is not in the table.
    """
    found = [module for module in model.modules() if is_vlm(module)]
    known = [vlm for vlm in found if _model_type(vlm) in SUPPORTED_FAMILIES]
    if len(known) == 1:
        return known[0]
    if known:
        raise InputError(
            f"{type(model).__name__} holds {len(known)} vision-language models; give AGCI the one that it shall serve."
        )
    raise unsupported(found[0] if found else model)


def family_of(model: "nn.Module") -> Family:
    """The row that `model` belongs to; errors as in `find_vlm`, and where the row refuses the config."""
    vlm = find_vlm(model)
    family = SUPPORTED_FAMILIES[_model_type(vlm)]
    reason = family.refusal(vlm.config)
    if reason is not None:
        raise InputError(f"This {family.name} checkpoint cannot be served by AGCI: {reason}.")
    return family


def is_vlm(module: "nn.Module") -> bool:
    """Whether `module` merges image features into the text and calls a decoder of its own, of any family."""
    return "language_model" in module._modules and has_image_features(module)


def has_image_features(module: Any) -> bool:
    """Whether `module` has transformers' method that turns pixels into features."""
    return callable(getattr(module, "get_image_features", None))


def unsupported(model: "nn.Module") -> InputError:
    """The error for a model that is not in the table; it names the model and lists the table."""
    model_type = _model_type(model)
    return InputError(
        f"AGCI does not support {type(model).__name__} (model_type {model_type!r}). {_instead(model_type)}"
    )


def unsupported_config(path: object, model_type: object) -> InputError:
    """The error for a config.json whose model_type is not in the table."""
    return InputError(f"{path} says model_type {model_type!r}, which AGCI does not support. {_instead(model_type)}")


def _instead(model_type: object) -> str:
    """Why this family cannot be served, where that is known; else what can be."""
    refused = REFUSED_FAMILIES.get(str(model_type))
    if refused is not None:
        return f"{refused.name} cannot be served: {refused.reason}."
    names = ", ".join(f"{family.name} ({family.model_type})" for family in SUPPORTED_FAMILIES.values())
    return f"Supported: {names}."


def _model_type(module: "nn.Module") -> str:
    return str(getattr(getattr(module, "config", None), "model_type", "none"))
