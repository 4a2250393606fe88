"""What the position probe found, as annotated maps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.position.comparison import AnswerChange, PairReport
from transformers_agci.experiments.position.measures import AnswerReport, ResultReport
from transformers_agci.experiments.position.results import rows_called
from transformers_agci.report.heatmap import (
    Panel,
    Scale,
    compose,
    minus,
    scale_about_zero,
    scale_over,
)
from transformers_agci.report.table import p_text
from transformers_agci.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Limits(NamedTuple):
    """The ends of the accuracies' scale in percent; None: as far as the intervals reach."""

    low: float | None = None
    high: float | None = None


def probe_figure(
    results: Sequence[ResultReport],
    pair: PairReport | None,
    title: str = "",
    remark: str = "",
    *,
    limits: Limits | None = None,
) -> "Figure":
    """One result (Yes map, No map beside it), or several: a row for Yes, a row for No; with a pair, also the
    difference."""
    sides = [name for name in ("yes", "no") if any(getattr(report, name) for report in results)]
    scale = accuracy_scale(results, limits)
    maps = {name: [accuracy_panel(report, name, scale, len(results) > 1) for report in results] for name in sides}
    panels: list[list[Panel | None]]
    if len(results) == 1:
        panels = [[panel for name in sides for panel in maps[name]]]
    elif pair is None:
        panels = [maps[name] for name in sides]
    else:
        differences = difference_scale([pair])
        panels = [[*maps[name], difference_panel(pair, name, results[0].shape, differences)] for name in sides]
    title = title or (results[0].label if len(results) == 1 else "")
    return compose(panels, title, "\n".join(line for line in (_footnote(pair), remark) if line))


def _footnote(pair: PairReport | None) -> str:
    paired = " (difference: paired over items)" if pair else ""
    return (
        f"small numbers: 95 % interval{paired}; colours span the intervals unless limits are given\n"
        "sd: of the cells' accuracies, in points; chance: its mean when positions are shuffled within items;\n"
        "p: the share of such shuffles whose sd is as large"
    )


def accuracy_scale(results: Sequence[ResultReport], limits: Limits | None = None) -> Scale:
    """One scale for the accuracies of all results, Yes and No rows; InputError for limits that leave no range."""
    answers = [side for report in results for side in (report.yes, report.no) if side]
    bounds = [100 * bound for side in answers for cell in side.cells for bound in (cell.low, cell.high)]
    scale = scale_over(bounds, "correct answers, %", 5, (0, 100))
    low, high = limits or Limits()
    scale = replace(scale, low=scale.low if low is None else low, high=scale.high if high is None else high)
    if not 0 <= scale.low < scale.high <= 100:
        raise InputError(
            f"`vmin` and `vmax` are percent, 0 to 100, the smaller first; the scale would go from {scale.low:g} to "
            f"{scale.high:g}."
        )
    return scale


def accuracy_panel(report: ResultReport, name: str, scale: Scale, named: bool) -> Panel | None:
    """The map of "yes" or "no" rows; `named` puts the result's label into the title."""
    side: AnswerReport | None = getattr(report, name)
    if side is None:
        return None
    called = rows_called(name, report.choice)
    answer = f"{called}: the target is {'not ' if name == 'no' else ''}there"
    if report.choice:
        answer = "choices, by the place of the right option"
    counts = {cell.n for cell in side.cells}
    per_cell = f"n = {counts.pop()} per cell" if len(counts) == 1 else ""
    mean = f"mean {100 * side.accuracy.estimate:.1f} %"
    sd = side.spread.sd
    spread = f"sd {100 * sd.observed:.1f} (chance {100 * sd.expected:.1f}, {p_text(sd.p)})"
    unreadable = f"{side.unreadable} unreadable" if side.unreadable else ""
    return Panel(
        values=100 * np.array([cell.estimate for cell in side.cells]).reshape(report.shape),
        scale=scale,
        title=f"{report.label}, {called}" if named else answer,
        note=", ".join(part for part in (mean, spread) if part)
        + "\n"
        + ", ".join(part for part in (per_cell, unreadable) if part),
        texts=[_cell(cell, "{:.1f}") for cell in side.cells],
        subtexts=[_range(cell, "{:.0f}") + ("" if per_cell else f"\nn = {cell.n}") for cell in side.cells],
    )


def margin_panel(report: ResultReport, name: str, scale: Scale) -> Panel | None:
    """The map of mean margins on "yes" or "no" rows, in logits; None where the result carries none."""
    side: AnswerReport | None = getattr(report, name)
    if side is None or side.margin is None or side.margin_cells is None:
        return None
    return Panel(
        values=np.array([cell.estimate for cell in side.margin_cells]).reshape(report.shape),
        scale=scale,
        title=f"{report.label}, {name.capitalize()} rows",
        note=f"mean {minus(f'{side.margin.estimate:.2f}')}, n = {side.margin.n}",
        texts=[minus(f"{cell.estimate:.2f}") if cell.n else "" for cell in side.margin_cells],
        subtexts=[
            minus(f"{cell.low:.2f} to {cell.high:.2f}") if np.isfinite(cell.low) else "" for cell in side.margin_cells
        ],
    )


def margin_scale(results: Sequence[ResultReport], name: str) -> Scale | None:
    """One scale for the margins of one answer's rows in all results; None where there are none."""
    sides = [getattr(report, name) for report in results]
    cells = [cell for side in sides if side and side.margin_cells for cell in side.margin_cells]
    ends = [end for cell in cells for end in (cell.low, cell.estimate, cell.high)]  # equal margins have no interval
    if not any(map(np.isfinite, ends)):
        return None
    return scale_over(ends, "margin, logit of Yes − logit of No", 0.5, (-np.inf, np.inf))


def difference_scale(pairs: Sequence[PairReport]) -> Scale:
    """One scale for the differences of several pairs, Yes and No rows."""
    cells = [c for pair in pairs for change in (pair.yes, pair.no) if change for c in change.accuracy.cells]
    bounds = [100 * b for cell in cells for b in (cell.low, cell.high)]
    return scale_about_zero(bounds, "difference, percentage points", 1)


def difference_panel(pair: PairReport, name: str, shape: tuple[int, int], scale: Scale) -> Panel | None:
    """The map of the differences on "yes" or "no" rows, in percentage points."""
    change: AnswerChange | None = getattr(pair, name)
    if change is None:
        return None
    overall = change.accuracy.overall
    return Panel(
        values=100 * np.array([cell.estimate for cell in change.accuracy.cells]).reshape(shape),
        scale=scale,
        title=f"difference, {rows_called(name, pair.choice)}",
        note=f"mean {_cell(overall, '{:+.1f}')} ({_range(overall, '{:+.1f}')})\n{counted(pair.items, 'item')}, paired",
        texts=[_cell(cell, "{:+.1f}") for cell in change.accuracy.cells],
        subtexts=[_range(cell, "{:+.0f}") for cell in change.accuracy.cells],
    )


def _cell(interval: Interval, form: str) -> str:
    return minus(form.format(100 * interval.estimate)) if np.isfinite(interval.estimate) else ""


def _range(interval: Interval, form: str) -> str:
    if not np.isfinite(interval.low):
        return ""
    return minus(f"{form.format(100 * interval.low)} to {form.format(100 * interval.high)}")
