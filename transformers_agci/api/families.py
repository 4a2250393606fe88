"""The supported model families in Python: a table, with what each supports."""

from dataclasses import dataclass
from typing import Any

from transformers_agci.api.arguments import checked
from transformers_agci.api.rows import Displayed, Tabular, tables_html
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.overview import HEAD, families_text, family_cells, remarks, supported
from transformers_agci.report.table import Table


@dataclass(frozen=True, eq=False, repr=False)
class FamilyTable(Displayed, Tabular):
    """The supported families: a row each by `rows`, `to_pandas()` and `to_arrow()`, and why some lack what."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Model, model_type, checkpoint, image tokens at 840x840, and whether each experiment can be made."""
        return [
            {
                "model": family.name,
                "model_type": family.model_type,
                "checkpoint": family.hub_id,
                "image_tokens": family.image_tokens,
                **{column.replace(" ", "_").replace("-", "_"): can for column, can in supported(family).items()},
            }
            for family in SUPPORTED_FAMILIES.values()
        ]

    @property
    def text(self) -> str:
        """What `agci families` prints."""
        return families_text()

    def _repr_html_(self) -> str:
        rows = [family_cells(family) for family in SUPPORTED_FAMILIES.values()]
        return tables_html([Table("", HEAD, rows)], remarks())


@checked
def supported_families() -> FamilyTable:
    """The families that AGCI serves, with what each supports; `SUPPORTED_FAMILIES` are their declarations.

    >>> from transformers_agci import supported_families
    >>> frame = supported_families().to_pandas()
    >>> frame[frame["model_type"] == "qwen2_5_vl"][["model", "flow"]].values.tolist()
    [['Qwen2.5-VL', True]]
    """
    return FamilyTable()
