"""The supported model families: everything that differs between them, one file per kin.

`SUPPORTED_FAMILIES` is the table; nothing outside this folder asks for a model_type. A declaration loads no torch.

>>> SUPPORTED_FAMILIES["llava"].name
'LLaVA-v1.5'
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError, short
from transformers_agci.families import codes, deepseek, gemma, grids, internvl, llava, minicpm, qwen, refused, tiles
from transformers_agci.families.declaration import Family, ForwardCall, Lacks, RefusedFamily, require

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "REFUSED_FAMILIES",
    "SUPPORTED_FAMILIES",
    "Family",
    "ForwardCall",
    "Lacks",
    "decoder_of",
    "family_called",
    "family_of",
    "find_vlm",
    "has_image_features",
    "image_token_id",
    "is_vlm",
    "paper_families",
    "remote_code_twin",
    "require",
    "supports",
    "todays_model_type",
    "unsupported",
    "unsupported_config",
]


def _table(rows: Iterable[Family]) -> Mapping[str, Family]:
    return MappingProxyType({family.model_type: family for family in rows})


_KIN = (qwen, gemma, internvl, llava, grids, codes, tiles, deepseek, minicpm)

SUPPORTED_FAMILIES = _table(family for kin in _KIN for family in kin.FAMILIES)
"""Every family that AGCI serves, by its model_type in transformers."""
REFUSED_FAMILIES: Mapping[str, RefusedFamily] = MappingProxyType(
    {family.model_type: family for family in refused.FAMILIES}
)


def remote_code_twin(model_type: object) -> Family | None:
    """The family that transformers has for checkpoints of this model_type that bring Python code of their own."""
    return next((family for family in SUPPORTED_FAMILIES.values() if model_type in family.remote_code), None)


def family_called(word: str) -> Family | None:
    """The family of this model_type, or of this name, as tables show it.

    >>> family_called("LLaVA-v1.5") is family_called("llava")
    True
    """
    return next((family for family in SUPPORTED_FAMILIES.values() if word in (family.model_type, family.name)), None)


def paper_families() -> Mapping[str, Family]:
    """The families that the paper evaluates, which scripts/ and configs/ are for."""
    return _table(family for family in SUPPORTED_FAMILIES.values() if family.in_paper)


def supports(family: Family, capability: str) -> bool:
    """Whether the family has a capability of `declaration.CAPABILITIES`; flow also needs to know where tokens lie."""
    if capability == "flow" and isinstance(family.layout, Lacks):
        return False
    return not isinstance(getattr(family, capability), Lacks)


def find_vlm(model: "nn.Module") -> "nn.Module":
    """The module inside `model` that merges image features into the text and calls the decoder.

    Takes the ForConditionalGeneration model, its inner model, or any wrapper around one (PEFT, DDP).

    Raises:
        InputError: no such module, two of them, or one of a family that is not in the table.
    """
    if not hasattr(model, "modules"):
        raise InputError(f"AGCI is put on a model of transformers that is in memory, but was given {short(model)}.")
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
    image_token_id(vlm.config)
    return family


def is_vlm(module: "nn.Module") -> bool:
    """Whether `module` merges image features into the text and calls a decoder of its own, of any family."""
    return has_image_features(module) and _decoder_name(module) is not None


def decoder_of(vlm: Any) -> Any:
    """The language model that `vlm` calls with the merged embeddings."""
    return vlm._modules[_decoder_name(vlm)]


# Names of the decoder in transformers; "model" was the thinkers' before 5.0.
_DECODERS = ("language_model", "text_model", "model")


def _decoder_name(vlm: Any) -> str | None:
    """The decoder's name; a "model" that has image features of its own is a vlm, and this one a wrapper around it."""
    children = vlm._modules
    return next((name for name in _DECODERS if name in children and not has_image_features(children[name])), None)


# Names of the image token's id in configs of transformers.
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id")


def image_token_id(config: Any) -> int:
    """The id of the token that stands for one image feature, under whichever name the config has it.

    Raises InputError where it has none.
    """
    for name in _IMAGE_TOKENS:
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    raise InputError(
        f"The config (model_type {getattr(config, 'model_type', None)!r}) says no image token "
        f"({' or '.join(_IMAGE_TOKENS[:2])}), so that none can be found; take the checkpoint's own config.json."
    )


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
    served = SUPPORTED_FAMILIES.get(_WITHIN.get(str(model_type), ""))
    if served is not None:
        return (
            f"{served.name} ({served.model_type}) within it is: the config key and `attach` serve it in programs of "
            "yours that load the model, but agci's own commands do not load it."
        )
    names = ", ".join(f"{family.name} ({family.model_type})" for family in SUPPORTED_FAMILIES.values())
    return f"Supported: {names}. `agci self-check --experimental CHECKPOINT` says what it would take."


# model_types of larger models -> the family that they hold and call as it is
_WITHIN = {
    "qwen2_5_omni": "qwen2_5_omni_thinker",
    "qwen3_omni_moe": "qwen3_omni_moe_thinker",
    "colpali": "paligemma",
}

# model_types of older versions of transformers, and as vLLM writes them -> today's
_OLDER_NAMES = {"lfm2-vl": "lfm2_vl", "unlimited-ocr": "unlimited_ocr"}


def todays_model_type(model_type: object) -> str:
    """The key of SUPPORTED_FAMILIES for a model_type that an older version of transformers may have written."""
    return _OLDER_NAMES.get(str(model_type), str(model_type))


def _model_type(module: "nn.Module") -> str:
    return todays_model_type(getattr(getattr(module, "config", None), "model_type", "none"))
