"""The prompt formats that a recipe may name: those that the families declare for fine-tuning."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES, Family, Lacks, require
from transformers_agci.families.training_support import Template


def _templates_of(family: Family) -> tuple[Template, ...]:
    return () if isinstance(family.training, Lacks) else family.training.templates


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {template.name: template for family in SUPPORTED_FAMILIES.values() for template in _templates_of(family)}
)


def families_of(template: str) -> tuple[Family, ...]:
    """The families whose checkpoints speak a template."""
    return tuple(
        family for family in SUPPORTED_FAMILIES.values() if any(own.name == template for own in _templates_of(family))
    )


def template_for(name: str, model_type: str) -> Template:
    """The template of this name, if it belongs to the family; InputError names the family's own otherwise."""
    family = SUPPORTED_FAMILIES[model_type]
    own = {template.name: template for template in require(family, "training", family.training).templates}
    if name in own:
        return own[name]
    names = " or ".join(own)
    if name not in TEMPLATES:
        near = get_close_matches(name, TEMPLATES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"The template {name!r} is not known; {hint}{family.name} ({model_type}) takes {names}.")
    others = " and ".join(other.name for other in families_of(name))
    raise InputError(
        f"The template {name!r} belongs to {others}, but the checkpoint is a {family.name} ({model_type}); "
        f"take {names}."
    )
