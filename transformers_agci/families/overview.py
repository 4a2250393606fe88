"""The supported families as a table, with what each supports: what `agci families` prints and docs/families.md has."""

from transformers_agci.families import REFUSED_FAMILIES, SUPPORTED_FAMILIES, supports
from transformers_agci.families.declaration import Family
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


def families_text() -> str:
    """The table in Markdown, and below it the families that cannot be served, each with the reason."""
    table = markdown_table(HEAD, [_row(family) for family in SUPPORTED_FAMILIES.values()])
    reasons: dict[str, list[str]] = {}
    for family in REFUSED_FAMILIES.values():
        reasons.setdefault(family.reason, []).append(f"{family.name} (`{family.model_type}`)")
    refused = (f"Not {', '.join(names)}: {reason}." for reason, names in reasons.items())
    return "\n\n".join([table, *refused])


def _row(family: Family) -> tuple[str, ...]:
    return (
        family.name,
        f"`{family.model_type}`",
        family.hub_id,
        family.image_tokens,
        "yes",
        *("yes" if supports(family, name) else "-" for name in CAPABILITIES.values()),
    )
