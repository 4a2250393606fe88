"""The evidence of several results as tables, one figure and JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci.errors import counted
from transformers_agci.experiments.position.comparison import as_json
from transformers_agci.experiments.position.evidence import Comparison, Evidence, ResultEvidence
from transformers_agci.experiments.position.metrics import Control, controls_text
from transformers_agci.experiments.position.tables import cells_with_d_prime, failing_positions
from transformers_agci.report.forest import CurvePanel, ForestPanel, forest_figure
from transformers_agci.report.table import ABSENT, CHANGE, NUMBER, PERCENT, POINTS, Style, Table, p_value
from transformers_agci.statistics import NO_DATA, Interval
from transformers_agci.statistics.evenness import MARGIN_UNIT, MARGIN_UNIT_NOTE, Change, signed_root
from transformers_agci.storage.json_file import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THREE, THREE_CHANGE = Style(digits=3), Style(digits=3, signed=True)
VARIANCE = Style(digits=4, signed=True)


def evidence_text(evidence: Evidence, controls: Sequence[Control] = ()) -> str:
    """All tables: each result by itself, against the first, the tests, what is said without the image, and remarks."""
    results, items = counted(len(evidence.results), "result"), counted(evidence.items, "item")
    head = f"{results} on the same {items}; 95 % intervals count items"
    blocks = [head, *(table.text for table in evidence_tables(evidence))]
    if len(evidence.comparisons) == 1:  # two engines, two versions of one: where they differ
        blocks.append(_by_position(evidence).text)
    if controls:
        blocks.append(controls_text(controls))
    if any(side.margin for row in evidence.results for side in (row.report.yes, row.report.no) if side):
        blocks.append(f"({MARGIN_UNIT_NOTE})")
    failing = [note for row in evidence.results for note in failing_positions(row.report, len(evidence.results))]
    return "\n\n".join([*blocks, *failing, *evidence.notes])


def evidence_tables(evidence: Evidence) -> list[Table]:
    """Each result by itself, then each against the first, and all tests."""
    tables = [_levels(evidence.results), _position_effects(evidence.results), _detection(evidence.results)]
    if evidence.comparisons:
        first = evidence.results[0].report.label
        tests = sum(len(comparison.tests) for comparison in evidence.comparisons)
        corrected = f"Holm's correction for {'all' if tests > 1 else 'the'} {counted(tests, 'test')} of this table"
        tables += [
            _changes(evidence)._replace(title=f"against {first} (paired)"),
            _evenness(evidence.comparisons),
            _test_table(evidence.comparisons)._replace(title=f"p, and in brackets {corrected}"),
        ]
    if evidence.results[0].report.choice:  # most measures are of Yes/No questions
        tables = [table for table in map(_without_empty_columns, tables) if len(table.header) > 1]
    return tables


Column = tuple[str, Callable[[Any], str]]


def _table(first: str, rows: Sequence[tuple[str, Any]], columns: Sequence[Column], groups: Sequence[int] = ()) -> Table:
    header = [first, *(name for name, _ in columns)]
    return Table("", header, [[label, *(write(row) for _, write in columns)] for label, row in rows], groups)


def _without_empty_columns(table: Table) -> Table:
    kept = [k for k in range(len(table.header)) if any(row[k] != ABSENT for row in table.rows)]
    rows = [[row[k] for k in kept] for row in table.rows]
    return Table(table.title, [table.header[k] for k in kept], rows)


def _levels(results: Sequence[ResultEvidence]) -> Table:
    """Accuracy and evenness of each result."""

    def sd(row: ResultEvidence) -> str:
        side = row.report.yes or row.report.no
        level = side.margin_unevenness if side else None
        return ABSENT if level is None else NUMBER.value(signed_root(level.estimate))

    columns: list[Column] = [
        (
            "right %" if results[0].report.choice else "Yes %",
            lambda row: PERCENT.write(row.report.yes and row.report.yes.accuracy),
        ),
        ("No %", lambda row: PERCENT.write(row.report.no and row.report.no.accuracy)),
        ("balanced %", lambda row: PERCENT.write(row.report.balanced)),
        (f"sd of margins over cells, in {MARGIN_UNIT}", sd),
    ]
    return _table("result", [(row.report.label, row) for row in results], columns)


def _position_effects(results: Sequence[ResultEvidence]) -> Table:
    """Whether answers depend on the place, and whether the cells of an item agree."""
    sides = [side for row in results if (side := row.report.yes or row.report.no)]
    of_margins = all(side.margin_spread for side in sides)  # one measure for all results

    def p(row: ResultEvidence) -> str:
        side = row.report.yes or row.report.no
        spread = side and (side.margin_spread if of_margins else side.spread)
        return p_value(spread.sd.p) if spread else ABSENT

    def hotelling(row: ResultEvidence) -> str:
        side = row.report.yes or row.report.no
        test = side and (side.margin_hotelling if of_margins else side.hotelling)
        return p_value(test.p) if test else ABSENT

    def failures(row: ResultEvidence) -> str:
        tests = [side.failures for side in (row.report.yes, row.report.no) if side and side.failures]
        return p_value(min(1.0, len(tests) * min(test.p for test in tests))) if tests else ABSENT

    choice, measure = results[0].report.choice, "margins" if of_margins else "answers"
    rows = "cells" if choice else "Yes rows"
    columns: list[Column] = [
        (f"position effect on {measure}, p", p),
        (f"Hotelling's T^2, {measure}, p", hotelling),
        ("failures by position, p", failures),
        (f"all {rows} right, % of items", lambda row: PERCENT.write(row.consistency and row.consistency.all_right)),
        (f"all {rows} alike, % of items", lambda row: PERCENT.write(row.consistency and row.consistency.all_alike)),
    ]
    return _table("result", [(row.report.label, row) for row in results], columns, groups=(3, 2))


def _detection(results: Sequence[ResultEvidence]) -> Table:
    def matched(row: ResultEvidence) -> Interval | None:
        return row.report.matched.accuracy if row.report.matched else None

    def in_cells(row: ResultEvidence) -> str:
        if row.calibration is None:
            return ABSENT
        gaps = [gap.estimate for gap in row.calibration.cells]
        return f"{POINTS.value(np.nanmin(gaps))} to {POINTS.value(np.nanmax(gaps))}"

    columns: list[Column] = [
        ("d'", lambda row: NUMBER.write(row.report.d_prime)),
        ("c", lambda row: NUMBER.write(row.report.criterion)),
        ("AUC", lambda row: THREE.write(row.report.auc)),
        ("Yes % at 90 % of No right", lambda row: PERCENT.write(matched(row))),
        ("Brier", lambda row: THREE.write(row.calibration and row.calibration.brier)),
        ("surer than right, points", lambda row: POINTS.write(row.calibration and row.calibration.gap)),
        ("in the cells", in_cells),
    ]
    return _table("result", [(row.report.label, row) for row in results], columns, groups=(4, 3))


def _changes(evidence: Evidence) -> Table:
    def matched(row: Comparison) -> str:
        found = row.pair.evenness.threshold_matched
        return ABSENT if found is None else POINTS.write(found.balanced)

    def same(row: Comparison) -> str:
        if row.equivalence is None:
            return ABSENT
        return f"{'yes' if row.equivalence.shown else 'not shown'}, p = {row.equivalence.p:.2g}"

    columns: list[Column] = [
        (
            "points" if evidence.results[0].report.choice else "Yes, points",
            lambda row: POINTS.write(row.pair.yes and row.pair.yes.accuracy.overall),
        ),
        ("No, points", lambda row: POINTS.write(row.pair.no and row.pair.no.accuracy.overall)),
        ("balanced, points", lambda row: POINTS.write(row.pair.balanced)),
        ("AUC", lambda row: THREE_CHANGE.write(row.pair.auc)),
        ("d'", lambda row: CHANGE.write(row.pair.d_prime)),
        ("balanced at the same Yes-rate, points", matched),
    ]
    if evidence.margin is not None:
        columns.append((f"within {100 * evidence.margin:g} points", same))
    return _table("second - first", [(row.pair.second, row) for row in evidence.comparisons], columns)


def _evenness(comparisons: Sequence[Comparison]) -> Table:
    def differing(row: Comparison) -> str:
        cells = [p for side in (row.pair.yes, row.pair.no) if side for p in side.holm_cells]
        return f"{sum(p <= 0.05 for p in cells)} of {len(cells)}"

    def change(name: str, style: Style = VARIANCE) -> Callable[[Comparison], str]:
        return lambda row: style.write(getattr(row.pair.evenness, name))

    def d_prime(row: Comparison) -> str:
        return VARIANCE.write(row.pair.evenness.d_prime) + cells_with_d_prime(row.pair)

    columns: list[Column] = [
        (f"V of margins, in {MARGIN_UNIT}", change("margin")),
        ("V of AUC, points^2", change("auc", Style(1e4, 1, signed=True))),
        ("V of d'", d_prime),
        ("V of accuracy, points^2", change("accuracy", Style(1e4, 1, signed=True))),
        ("evenness", lambda row: row.pair.evenness.verdict),
        ("cells that differ (McNemar, Holm)", differing),
    ]
    return _table("change over the cells", [(row.pair.second, row) for row in comparisons], columns, groups=(3, 3))


def _test_table(comparisons: Sequence[Comparison]) -> Table:
    names = list(dict.fromkeys(name for comparison in comparisons for name in comparison.tests))

    def test(name: str) -> Callable[[Comparison], str]:
        def write(row: Comparison) -> str:
            if name not in row.tests:
                return ABSENT
            if name == "evenness" and row.pair.evenness.verdict == "cannot tell":  # its p stays in the correction
                return "cannot tell"
            return f"{p_value(row.tests[name])} ({p_value(row.holm[name])})"

        return write

    return _table("test", [(row.pair.second, row) for row in comparisons], [(name, test(name)) for name in names])


def _by_position(evidence: Evidence) -> Table:
    """Answers and margins at each position, second - first, with p corrected over the positions."""
    (comparison,) = evidence.comparisons
    header, columns = ["position"], [list(evidence.results[0].report.positions)]
    groups: list[int] = []  # columns of one answer
    for name, change in (("Yes", comparison.pair.yes), ("No", comparison.pair.no)):
        if change is None:
            continue
        header += ["points" if comparison.pair.choice else f"{name}, points", "p"]
        columns += [[POINTS.write(cell) for cell in change.accuracy.cells], list(map(p_value, change.holm_cells))]
        if change.margin is not None:
            header += [f"margin of {name} rows, logits", "p"]
            margins = [CHANGE.write(cell) for cell in change.margin.cells]
            columns += [margins, list(map(p_value, change.margin_cells))]
        groups.append(len(header) - 1 - sum(groups))
    title = (
        "by position (paired): answers by McNemar's test, margins by the t test (the sign test where all "
        "moved alike); p with Holm's correction over the "
        "positions of Yes and No rows, for each of the two"
        if not comparison.pair.choice
        else "by position (paired): by McNemar's test; p with Holm's correction over the positions"
    )
    return Table(title, header, list(zip(*columns, strict=True)), groups)


def write_json(evidence: Evidence, controls: Sequence[Control], path: str | Path) -> None:
    """All numbers as JSON."""
    write_report(path, as_json(evidence) | {"without_image": as_json(list(controls))})


def evidence_figure(evidence: Evidence, title: str = "") -> "Figure":
    """One figure: a line per result, panels for accuracy, AUC, evenness of the margins, and each against the first.

    Below them, where there are margins of both answers, the ROC and the reliability of sigma(margin).
    """
    panels = [ForestPanel(name, points, "against" in name) for name, points in figure_panels(evidence)]
    labels = [row.report.label for row in evidence.results]
    footnote = f"{counted(evidence.items, 'item')}; lines: 95 % intervals over items"
    return forest_figure(panels, labels, title, footnote, _curve_panels(evidence))


def _curve_panels(evidence: Evidence) -> list[CurvePanel]:
    rocs, curves = {}, {}
    for row in evidence.results:
        label = row.report.label
        if row.roc:
            rocs[label] = [
                (x, Interval(y, np.nan, np.nan, 1)) for x, y in zip(row.roc.false_alarms, row.roc.hits, strict=True)
            ]
        if row.calibration:
            curves[label] = [(of_bin.probability, of_bin.share) for of_bin in row.calibration.curve]
    panels = [
        CurvePanel("ROC of the margins", "share of No rows with a Yes", "share of Yes rows with a Yes", rocs),
        CurvePanel("reliability", "sigma(margin), mean of a bin", "share whose right answer is Yes", curves),
    ]
    return [panel for panel in panels if panel.lines]


def figure_panels(evidence: Evidence) -> list[tuple[str, list[Interval]]]:
    """The panels of `_all_panels` that hold anything."""
    return [(name, points) for name, points in _all_panels(evidence) if any(np.isfinite(p.estimate) for p in points)]


def _all_panels(evidence: Evidence) -> list[tuple[str, list[Interval]]]:
    """What the figure shows: per panel its title and an interval per result; NO_DATA where a result has none."""
    reports = [row.report for row in evidence.results]
    pairs = [row.pair for row in evidence.comparisons]
    against = f"against {reports[0].label}"

    def variances(measure: str) -> list[Interval]:
        """Of the results whose verdict rests on this measure."""
        points = [NO_DATA]
        for evenness in (pair.evenness for pair in pairs):
            found: Change | None = getattr(evenness, measure)
            points.append(Interval(*found[2:], 1) if found and found is evenness.decisive else NO_DATA)
        return points

    return [
        (
            "right, %" if reports[0].choice else "Yes rows right, %",
            [(r.yes.accuracy if r.yes else NO_DATA).scaled(100) for r in reports],
        ),
        ("No rows right, %", [(r.no.accuracy if r.no else NO_DATA).scaled(100) for r in reports]),
        ("AUC of the margins", [r.auc or NO_DATA for r in reports]),
        (f"balanced accuracy, points,\n{against}", [NO_DATA, *((p.balanced or NO_DATA).scaled(100) for p in pairs)]),
        (f"AUC,\n{against}", [NO_DATA, *(p.auc or NO_DATA for p in pairs)]),
        (f"variance of margins over\ncells, in squared sd within a\ncell, {against}", variances("margin")),
        (f"variance of d' over cells,\n{against}", variances("d_prime")),
    ]
