"""Similarity results in numbers and as a map: mean overall and per position, with intervals over items."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.data.rows import read_rows
from transformers_agci.errors import InputError, counted, short
from transformers_agci.experiments.defaults import DRAWS
from transformers_agci.experiments.items import item_names
from transformers_agci.report.heatmap import Panel, Scale, compose, image_path, minus, save_figure, scale_about_zero
from transformers_agci.report.table import Style, format_table
from transformers_agci.storage.json_file import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSINE = Style(digits=4)
COSINE_CHANGE = Style(digits=4, signed=True)


@dataclass(frozen=True)
class SimilarityReport:
    """Cosines: the mean over all rows and per cell (row-major), and whether the cells differ by more than chance.

    `effects` are paired: per cell the mean difference from the item's own mean over its cells. How far items differ
    from one another, which makes the intervals of `cells` wide, drops out of them.
    """

    items: int
    overall: st.Interval
    cells: list[st.Interval]
    effects: list[st.Interval]
    spread: st.SpreadTest


def read_similarities(path: Path | str) -> st.Floats:
    """[items, 9] cosines of a result file, NaN where a row is missing.

    Raises InputError naming file:line for a row without a usable `similarity`, or two rows for one item and cell.
    """
    path = Path(path)
    rows, values = [], []
    for where, fields in read_rows(path):
        row = ProbeRow.parse(fields, where)
        row.check_published_form()
        rows.append(row)
        value = fields.get("similarity")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 - 1e-4 <= value <= 1 + 1e-4:
            raise InputError(
                f'{where}: "similarity" must be a cosine between -1 and 1, but is {short(value)}; give a file '
                "that agci similarity wrote."
            )
        values.append(float(value))
    names = item_names(rows)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    table = np.full((len(numbers), len(POSITIONS)), np.nan)
    for row, name, value in zip(rows, names, values, strict=True):
        place = numbers[name], row.cell
        if not np.isnan(table[place]):
            raise InputError(
                f"{row.where}: the item {name} has two rows for {row.position}; the file was joined from "
                "two runs, or an id is used twice."
            )
        table[place] = value
    return table


def measure(table: st.Floats, draws: int = DRAWS, seed: int = 0) -> SimilarityReport:
    """Means with t intervals over items, and the test of evenness that permutes within items."""
    centred = table - np.nanmean(table, axis=1, keepdims=True)
    means, effects = (st.mean_over_items(values) for values in (table, centred))
    return SimilarityReport(
        len(table), means.overall, means.cells, effects.cells, st.permutation_null(table, draws, seed)
    )


def report_text(report: SimilarityReport, label: str) -> str:
    """The numbers as a table."""
    sd, gap = report.spread.sd, report.spread.gap
    lines = [
        f"{label}: {counted(report.items, 'item')}, {counted(report.overall.n, 'row')}; 95 % intervals over items",
        "",
        f"mean similarity {COSINE.write(report.overall)}",
        f"deviation over the positions {sd.observed:.4f} (by chance {sd.expected:.4f}, p = {sd.p:.4f}); "
        f"largest minus smallest {gap.observed:.4f} (by chance {gap.expected:.4f})",
        "",
    ]
    rows = [
        [name, COSINE.write(cell), COSINE_CHANGE.write(effect), str(cell.n)]
        for name, cell, effect in zip(POSITIONS, report.cells, report.effects, strict=True)
    ]
    lines.append(format_table(["position", "similarity [95 %]", "from the item's mean [95 %]", "n"], rows))
    return "\n".join(lines)


def draw_similarity(report: SimilarityReport, path: str | Path, title: str = "") -> Path:
    """Two panels: the whole range 0 to 1 as in the paper, and the paired differences on a scale that spans the data."""
    target = image_path(path)
    save_figure(similarity_figure(report, title), target)
    return target


def similarity_figure(report: SimilarityReport, title: str = "") -> "Figure":
    """The same as a figure, no file."""
    counts = {cell.n for cell in report.cells}
    per_cell = f"n = {counts.pop()} per cell" if len(counts) == 1 else "n differs by cell"
    sd = report.spread.sd
    effects = [_thousandths(cell) for cell in report.effects]
    scale = scale_about_zero(
        [bound for cell in effects for bound in (cell.low, cell.high)], "from the item's mean, thousandths", 1
    )
    panels = [
        _panel(
            report.cells,
            Scale(0, 1, "similarity (cosine)"),
            "similarity, 0 to 1",
            ".3f",
            f"mean {report.overall.estimate:.3f}\n{per_cell}",
        ),
        _panel(
            effects,
            scale,
            "scaled to the data",
            "+.1f",
            f"sd of the cells {sd.observed:.4f}\nchance {sd.expected:.4f}, p = {sd.p:.3g}",
        ),
    ]
    footnote = (
        "small numbers: 95 % interval over items; chance: the mean sd when positions are shuffled within items;\n"
        "p: the share of such shuffles whose sd is as large"
    )
    return compose([panels], title, footnote)


def _thousandths(cell: st.Interval) -> st.Interval:
    return cell._replace(estimate=1000 * cell.estimate, low=1000 * cell.low, high=1000 * cell.high)


def _panel(cells: list[st.Interval], scale: Scale, title: str, form: str, note: str) -> Panel:
    return Panel(
        values=np.array([cell.estimate for cell in cells]).reshape(3, 3),
        scale=scale,
        title=title,
        note=note,
        texts=[minus(f"{cell.estimate:{form}}") if cell.n else "–" for cell in cells],
        subtexts=[minus(f"{cell.low:{form}} to {cell.high:{form}}") if np.isfinite(cell.low) else "" for cell in cells],
    )


def write_json(report: SimilarityReport, path: str | Path) -> None:
    """All numbers as JSON."""
    content: dict[str, Any] = {
        "items": report.items,
        "overall": _plain(report.overall),
        "positions": {
            name: {"similarity": _plain(cell), "from_item_mean": _plain(effect)}
            for name, cell, effect in zip(POSITIONS, report.cells, report.effects, strict=True)
        },
        "spread": {"sd": report.spread.sd._asdict(), "gap": report.spread.gap._asdict()},
    }
    write_report(path, content)


def _plain(interval: st.Interval) -> dict[str, float | None]:
    """As JSON has it: a bound that could not be had is null."""
    return {name: value if np.isfinite(value) else None for name, value in interval._asdict().items()}
