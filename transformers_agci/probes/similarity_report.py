"""Similarity results in numbers and as a map: mean overall and per position, with intervals over items."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.rows import ProbeRow, read_rows
from transformers_agci.errors import InputError
from transformers_agci.probes.items import item_names
from transformers_agci.report.heatmap import Panel, Scale, draw, scale_over
from transformers_agci.report.table import format_table


@dataclass(frozen=True)
class SimilarityReport:
    """Cosines: the mean over all rows and per cell (row-major), and whether the cells differ by more than chance."""

    items: int
    overall: st.Interval
    cells: list[st.Interval]
    spread: st.SpreadTest


def read_similarities(path: Path | str) -> st.Floats:
    """[items, 9] cosines of a result file, NaN where a row is missing.

    Raises InputError naming file:line for a row without a usable `similarity`, or two rows for one item and cell.
    """
    path = Path(path)
    rows, values = [], []
    for where, fields in read_rows(path):
        rows.append(ProbeRow.parse(fields, where))
        value = fields.get("similarity")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 - 1e-4 <= value <= 1 + 1e-4:
            raise InputError(f'{where}: "similarity" must be a cosine between -1 and 1, but is {value!r}; give a file '
                             "that agci similarity wrote.")
        values.append(float(value))
    names = item_names(rows)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    table = np.full((len(numbers), len(POSITIONS)), np.nan)
    for row, name, value in zip(rows, names, values, strict=True):
        place = numbers[name], row.cell
        if not np.isnan(table[place]):
            raise InputError(f"{row.where}: the item {name} has two rows for {row.position}; the file was joined from "
                             "two runs, or an id is used twice.")
        table[place] = value
    return table


def measure(table: st.Floats, draws: int = 2000, seed: int = 0) -> SimilarityReport:
    """Means with bootstrap intervals that resample items, and the test of evenness that permutes within items."""
    sample = st.bootstrap([table], draws, seed)[0]
    counts = (~np.isnan(table)).sum(axis=0)
    cells = [st.percentile_interval(drawn, float(mean), int(n))
             for drawn, mean, n in zip(sample.cells.T, st.cell_means(table), counts, strict=True)]
    overall = st.percentile_interval(sample.overall, float(np.nanmean(table)), int(counts.sum()))
    return SimilarityReport(len(table), overall, cells, st.permutation_null(table, draws, seed))


def report_text(report: SimilarityReport, label: str) -> str:
    """The numbers as a table."""
    sd, gap = report.spread.sd, report.spread.gap
    lines = [f"{label}: {report.items} items, {report.overall.n} rows; 95 % intervals resample items", "",
             f"mean similarity {_with_range(report.overall)}",
             f"deviation over the positions {sd.observed:.4f} (by chance {sd.expected:.4f}, p = {sd.p:.4f}); "
             f"largest minus smallest {gap.observed:.4f} (by chance {gap.expected:.4f})", ""]
    rows = [[name, _with_range(cell), str(cell.n)] for name, cell in zip(POSITIONS, report.cells, strict=True)]
    return "\n".join(lines) + format_table(["position", "similarity [95 %]", "n"], rows)


def _with_range(value: st.Interval) -> str:
    return f"{value.estimate:.4f} [{value.low:.4f}, {value.high:.4f}]"


def draw_similarity(report: SimilarityReport, path: str | Path, title: str = "") -> Path:
    """Two panels: the whole range 0 to 1 as in the paper, and a scale that spans the data's intervals."""
    bounds = [bound for cell in report.cells for bound in (cell.low, cell.high)]
    counts = {cell.n for cell in report.cells}
    per_cell = f"n = {counts.pop()} per cell" if len(counts) == 1 else "n differs by cell"
    sd = report.spread.sd
    notes = (f"mean {report.overall.estimate:.3f}, {per_cell}", f"sd {sd.observed:.4f} (chance {sd.expected:.4f}, "
                                                                f"p = {sd.p:.3g})")
    scales = (Scale(0, 1, "similarity (cosine), whole range"),
              scale_over(bounds, "similarity (cosine), range of the data", _step(bounds), (-1, 1)))
    panels = [
        Panel(
            values=np.array([cell.estimate for cell in report.cells]).reshape(3, 3),
            scale=scale,
            title=name,
            note=note,
            texts=[f"{cell.estimate:.3f}" if cell.n else "-" for cell in report.cells],
            subtexts=[f"{cell.low:.3f} – {cell.high:.3f}" if cell.n else "" for cell in report.cells],
        )
        for name, note, scale in zip(("0 to 1", "scaled to the data"), notes, scales, strict=True)
    ]
    return draw([panels], path, title, "small numbers: 95 % interval over items")


def _step(bounds: list[float]) -> float:
    """A round step of about a tenth of the range, so that the scale's ends are short numbers."""
    finite = [bound for bound in bounds if np.isfinite(bound)]
    width = max(finite) - min(finite) if finite else 0.0
    return float(10 ** np.floor(np.log10(width))) / 2 if width > 0 else 0.01


def write_json(report: SimilarityReport, path: str | Path) -> None:
    """All numbers as JSON."""
    content: dict[str, Any] = {
        "items": report.items,
        "overall": report.overall._asdict(),
        "positions": {name: cell._asdict() for name, cell in zip(POSITIONS, report.cells, strict=True)},
        "spread": {"sd": report.spread.sd._asdict(), "gap": report.spread.gap._asdict()},
    }
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json: '{path}' cannot be written: {error.strerror}; choose another path.") from error
