"""What the position probe found, for the eye: tables for the terminal, and the annotated maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformers_agci.experiments.position.report import AnswerChange, AnswerReport, PairReport, ResultReport
from transformers_agci.report.heatmap import Panel, Scale, draw, scale_about_zero, scale_over
from transformers_agci.report.table import format_table
from transformers_agci.statistics import NO_DATA, Interval, Spread

ABSENT = "-"


def result_text(report: ResultReport) -> str:
    """The numbers of one result: overall, evenness, per position."""
    sides = [(name, side) for name, side in (("Yes", report.yes), ("No", report.no)) if side]
    rows = {name: side.accuracy.n for name, side in sides}
    counts = ", ".join(f"{n} {name} rows" for name, n in rows.items())
    lines = [f"{report.label}: {report.items} items on a {report.shape[0]}x{report.shape[1]} grid, {counts}", ""]
    lines += [_overall(report), "", _evenness(report), "", _positions(report)]
    if report.no is None:
        lines += [
            "",
            "Only Yes rows: accuracy is the Yes-rate and cannot tell sight from a habit of saying Yes; "
            "give negatives for balanced accuracy and d'.",
        ]
    return "\n".join(lines)


def pair_text(pair: PairReport) -> str:
    """The difference of two results over all positions: accuracy, evenness, balanced accuracy, d'."""
    lines = [f"{pair.second} minus {pair.first}, {pair.items} items (paired, item-clustered bootstrap; points)", ""]
    rows = []
    for name, change in (("Yes rows", pair.yes), ("No rows", pair.no)):
        if change:
            rows.append([f"accuracy, {name}", _signed(change.accuracy.overall), str(change.accuracy.overall.n)])
            rows.append([f"deviation over cells, {name}", _signed(change.sd), str(change.sd.n)])
    if pair.balanced and pair.d_prime:
        rows.append(["balanced accuracy", _signed(pair.balanced), str(pair.balanced.n)])
        rows.append(["d' (not points)", _signed(pair.d_prime, factor=1, digits=2), str(pair.d_prime.n)])
    lines += [format_table(["difference", "estimate [95 %]", "n"], rows)]
    if pair.left_out:
        lines += ["", f"{pair.left_out} rows that only one of the two results has are left out."]
    return "\n".join(lines)


def pair_positions(pair: PairReport, positions: Sequence[str]) -> str:
    """The difference per position: points with interval, rows gained and lost, McNemar's exact p."""
    header, columns = ["position"], [list(positions)]
    for name, change in (("Yes", pair.yes), ("No", pair.no)):
        if change:
            header += [f"{name} [95 %]", "gained", "lost", "McNemar p"]
            columns += [
                [_signed(cell) for cell in change.accuracy.cells],
                [str(test.gained) for test in change.mcnemar_cells],
                [str(test.lost) for test in change.mcnemar_cells],
                [_p(test.p) for test in change.mcnemar_cells],
            ]
    return format_table(header, list(zip(*columns, strict=True)))


def summary_text(results: Sequence[ResultReport], pair: PairReport) -> str:
    """Two results and their difference on one screen: per position, then over all of them."""
    header, columns = ["correct, %"], [[*results[0].positions, "all positions"]]
    for name, side in (("yes", "Yes rows"), ("no", "No rows")):
        change: AnswerChange | None = getattr(pair, name)
        if change is None:
            continue
        for report, label in zip(results, (f"{side}: {_short(pair.first)}", _short(pair.second)), strict=True):
            answer: AnswerReport = getattr(report, name)
            header.append(label)
            columns.append([f"{100 * cell.estimate:.1f}" for cell in (*answer.cells, answer.accuracy)])
        header.append("difference [95 %]")
        columns.append([_signed(cell) for cell in (*change.accuracy.cells, change.accuracy.overall)])
    positions = format_table(header, list(zip(*columns, strict=True)))
    return f"{positions}\n\n{_summary_overall(results, pair)}"


def _short(label: str) -> str:
    """ "AGCI (lambda 0.5)" -> "AGCI", for the head of a column."""
    return label.split(" (", maxsplit=1)[0]


def _summary_overall(results: Sequence[ResultReport], pair: PairReport) -> str:
    rows = []
    if pair.balanced and pair.d_prime:
        first, second = (report.balanced or NO_DATA for report in results)
        rows.append(["balanced accuracy, %", _percent(first), _percent(second), _signed(pair.balanced)])
        first, second = (report.d_prime or NO_DATA for report in results)
        rows.append(["d'", _number(first), _number(second), _signed(pair.d_prime, factor=1, digits=2)])
    for name, change in (("yes", pair.yes), ("no", pair.no)):
        if change:
            spreads = [getattr(report, name).spread.sd for report in results]
            texts = [f"{100 * s.observed:.1f} (chance {100 * s.expected:.1f}, {_p_text(s.p)})" for s in spreads]
            rows.append([f"sd over positions, {name.capitalize()} rows", *texts, _signed(change.sd)])
    unreadable = [sum(side.unreadable for side in (report.yes, report.no) if side) for report in results]
    rows.append(["unreadable answers", *map(str, unreadable), ""])
    return format_table(["over all positions", *(report.label for report in results), "difference [95 %]"], rows)


def draw_maps(
    results: Sequence[ResultReport], pair: PairReport | None, path: str | Path, title: str = "", remark: str = ""
) -> Path:
    """Draw one result (Yes map, No map beside it) or two (a row for Yes, a row for No: first | second | difference)."""
    sides = [name for name in ("yes", "no") if any(getattr(report, name) for report in results)]
    answers = [side for report in results for side in (report.yes, report.no) if side]
    bounds = [100 * bound for side in answers for cell in side.cells for bound in (cell.low, cell.high)]
    scale = scale_over(bounds, "correct answers, %", 5, (0, 100))
    maps = {name: [_accuracy_panel(report, name, scale, len(results) > 1) for report in results] for name in sides}
    if pair is None:
        panels: list[list[Panel | None]] = [[panel for name in sides for panel in maps[name]]]
    else:
        differences = _difference_scale(pair)
        panels = [[*maps[name], _difference_panel(pair, name, results[0].shape, differences)] for name in sides]
    title = title or (results[0].label if pair is None else "")
    return draw(panels, path, title, "\n".join(line for line in (_footnote(pair), remark) if line))


def _footnote(pair: PairReport | None) -> str:
    if pair:
        return (
            "small numbers: 95 % interval (difference: paired bootstrap over items); colours span the intervals; "
            "p: positions shuffled within items"
        )
    return "small numbers: 95 % interval; colours span the intervals\np: positions shuffled within items"


def _accuracy_panel(report: ResultReport, name: str, scale: Scale, named: bool) -> Panel | None:
    side: AnswerReport | None = getattr(report, name)
    if side is None:
        return None
    answer = "Yes rows: the target is there" if name == "yes" else "No rows: the target is not there"
    counts = {cell.n for cell in side.cells}
    per_cell = f"n = {counts.pop()} per cell" if len(counts) == 1 else ""
    mean = f"mean {100 * side.accuracy.estimate:.1f} %"
    sd = side.spread.sd
    spread = f"sd {100 * sd.observed:.1f} (chance {100 * sd.expected:.1f}, {_p_text(sd.p)})"
    unreadable = f"{side.unreadable} unreadable" if side.unreadable else ""
    return Panel(
        values=100 * np.array([cell.estimate for cell in side.cells]).reshape(report.shape),
        scale=scale,
        title=f"{report.label}, {name.capitalize()} rows" if named else answer,
        note=", ".join(part for part in (mean, spread) if part)
        + "\n"
        + ", ".join(part for part in (per_cell, unreadable) if part),
        texts=[_cell(cell, "{:.1f}") for cell in side.cells],
        subtexts=[_range(cell, "{:.0f}") + ("" if per_cell else f"\nn = {cell.n}") for cell in side.cells],
    )


def _difference_scale(pair: PairReport) -> Scale:
    cells = [cell for change in (pair.yes, pair.no) if change for cell in change.accuracy.cells]
    bounds = [100 * b for cell in cells for b in (cell.low, cell.high)]
    return scale_about_zero(bounds, "difference, percentage points", 1)


def _difference_panel(pair: PairReport, name: str, shape: tuple[int, int], scale: Scale) -> Panel | None:
    change: AnswerChange | None = getattr(pair, name)
    if change is None:
        return None
    overall = change.accuracy.overall
    return Panel(
        values=100 * np.array([cell.estimate for cell in change.accuracy.cells]).reshape(shape),
        scale=scale,
        title=f"difference, {name.capitalize()} rows",
        note=f"mean {_cell(overall, '{:+.1f}')} ({_range(overall, '{:+.1f}')})\n{pair.items} items, paired",
        texts=[_cell(cell, "{:+.1f}") for cell in change.accuracy.cells],
        subtexts=[_range(cell, "{:+.0f}") for cell in change.accuracy.cells],
    )


def _cell(interval: Interval, form: str) -> str:
    return _minus(form.format(100 * interval.estimate)) if np.isfinite(interval.estimate) else ""


def _range(interval: Interval, form: str) -> str:
    if not np.isfinite(interval.low):
        return ""
    return _minus(f"{form.format(100 * interval.low)} to {form.format(100 * interval.high)}")


def _minus(text: str) -> str:
    """A typographic minus sign for images, and no sign at zero."""
    for zero in ("+0.0", "-0.0", "+0", "-0"):
        text = " ".join(zero[1:] if word == zero else word for word in text.split(" "))
    return text.replace("-", "−")


def _overall(report: ResultReport) -> str:
    rows = [
        [f"accuracy, {name} rows", _percent(side.accuracy), str(side.accuracy.n), str(side.unreadable)]
        for name, side in (("Yes", report.yes), ("No", report.no))
        if side
    ]
    if report.balanced and report.d_prime:
        rows.append(["balanced accuracy", _percent(report.balanced), str(report.balanced.n), ""])
        rows.append(["d' (log-linear)", _number(report.d_prime), str(report.d_prime.n), ""])
    for name, side in (("Yes", report.yes), ("No", report.no)):
        if side and side.margin:
            rows.append([f"margin, {name} rows (logits)", _number(side.margin), str(side.margin.n), ""])
    return format_table(["over all positions", "estimate [95 %]", "n", "unreadable"], rows)


def _evenness(report: ResultReport) -> str:
    rows = []
    for name, side in (("Yes", report.yes), ("No", report.no)):
        if side:
            rows.append([f"sd, {name} rows (points)", *_spread(side.spread.sd, 100)])
            rows.append([f"max - min, {name} rows (points)", *_spread(side.spread.gap, 100)])
            if side.margin_spread:
                rows.append([f"sd of margin, {name} rows (logits)", *_spread(side.margin_spread.sd, 1)])
    return format_table(["over the cells", "observed", "by chance", "95 % below", "p"], rows)


def _spread(spread: Spread, factor: float) -> list[str]:
    digits = 1 if factor == 100 else 2
    return [f"{factor * value:.{digits}f}" for value in spread[:3]] + [_p(spread.p)]


def _positions(report: ResultReport) -> str:
    header, columns = ["position"], [list(report.positions)]
    for name, side in (("Yes", report.yes), ("No", report.no)):
        if side is None:
            continue
        header += [f"{name} %  [95 %]", "n", "unreadable"]
        columns += [
            [_percent(cell) for cell in side.cells],
            [str(cell.n) for cell in side.cells],
            [str(count) for count in side.unreadable_cells],
        ]
        if side.margin_cells:
            header.append("margin")
            columns.append([_number(cell, bounds=False) for cell in side.margin_cells])
    if report.balanced_cells and report.d_prime_cells:
        header += ["balanced %", "d'"]
        columns += [
            [_percent(cell) for cell in report.balanced_cells],
            [_number(cell, bounds=False) for cell in report.d_prime_cells],
        ]
    return format_table(header, list(zip(*columns, strict=True)))


def _percent(interval: Interval) -> str:
    return _estimate(interval, 100, "{:.1f}")


def _signed(interval: Interval, factor: float = 100, digits: int = 1) -> str:
    return _estimate(interval, factor, f"{{:+.{digits}f}}")


def _number(interval: Interval, bounds: bool = True) -> str:
    text = _estimate(interval, 1, "{:.2f}")
    return text if bounds else text.split(" [")[0]


def _estimate(interval: Interval, factor: float, form: str) -> str:
    if not np.isfinite(interval.estimate):
        return ABSENT
    low, high = (form.format(factor * bound) for bound in (interval.low, interval.high))
    return f"{form.format(factor * interval.estimate)} [{low}, {high}]"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
