"""The supported families as a table, with what each supports: what `agci families` prints and docs/families.md has."""

from collections.abc import Iterable, Iterator

from transformers_agci.families import REFUSED_FAMILIES, SUPPORTED_FAMILIES, supports
from transformers_agci.families.declaration import CAPABILITIES as WORDS
from transformers_agci.families.declaration import Family, Lacks, RefusedFamily
from transformers_agci.report.table import markdown_table

# Column of the table -> the capability that it shows.
CAPABILITIES = {
    "probe": "probe",
    "occlusion layout": "layout",
    "flow": "flow",
    "fine-tuning": "training",
    "conversion": "conversion",
}
HEAD = ("model", "`model_type`", "checkpoint", "image tokens at 840x840", "method", *CAPABILITIES)


MANY = 20  # families of one reason; they are the table's dashes and are not named again


def families_text() -> str:
    """The table in Markdown, below it why some lack what, and the families that cannot be served, with the reason."""
    table = markdown_table(HEAD, [family_cells(family) for family in SUPPORTED_FAMILIES.values()])
    return "\n\n".join([table, *remarks()])


def remarks() -> list[str]:
    """Why some families lack what, and which cannot be served, a sentence for each reason."""
    refused = by_reason((family, family.reason) for family in REFUSED_FAMILIES.values())
    return [*_lacking(), *(f"Not {names}: {reason}." for reason, names in refused.items())]


def supported(family: Family) -> dict[str, bool]:
    """Column of the table -> whether the family has that capability."""
    return {column: supports(family, name) for column, name in CAPABILITIES.items()}


def _lacking() -> Iterator[str]:
    for capability in (*CAPABILITIES.values(), "positions"):
        declared = ((family, getattr(family, capability)) for family in SUPPORTED_FAMILIES.values())
        lacks = [(family, found.reason) for family, found in declared if isinstance(found, Lacks)]
        for reason, names in by_reason(lacks).items():
            yield f"No {WORDS[capability]} for {names}: {reason}."


def by_reason(families: Iterable[tuple[Family | RefusedFamily, str]]) -> dict[str, str]:
    """Reason -> the families that have it, by name and model_type; where they are many, all with a dash."""
    found: dict[str, list[str]] = {}
    for family, reason in families:
        found.setdefault(reason, []).append(f"{family.name} (`{family.model_type}`)")
    return {reason: ", ".join(names) if len(names) <= MANY else "most with a dash" for reason, names in found.items()}


def family_cells(family: Family) -> tuple[str, ...]:
    """A family's row of the table."""
    return (
        family.name,
        f"`{family.model_type}`",
        family.hub_id,
        family.image_tokens,
        "yes",
        *("yes" if can else "-" for can in supported(family).values()),
    )
