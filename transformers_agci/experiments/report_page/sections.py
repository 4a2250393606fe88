"""From the evidence to what the page says and draws: sentences, maps, plots, tables. Nothing is computed here."""

from collections.abc import Sequence
from typing import Any

from transformers_agci.experiments.position.evidence import Evidence
from transformers_agci.experiments.position.evidence_report import evidence_tables, figure_panels
from transformers_agci.experiments.position.maps import (
    accuracy_panel,
    accuracy_scale,
    difference_panel,
    difference_scale,
    margin_panel,
    margin_scale,
)
from transformers_agci.experiments.position.measures import AnswerReport, ResultReport
from transformers_agci.experiments.position.metrics import Control, controls_table
from transformers_agci.experiments.position.results import ProbeResult, rows_called
from transformers_agci.experiments.position.tables import pair_positions
from transformers_agci.report.page.plots import Plot, Point, Series, interval_plot, line_plot
from transformers_agci.report.page.render import CellMap, MapRow
from transformers_agci.report.table import PERCENT, Table, p_text
from transformers_agci.statistics import Interval

SIDES = (("yes", "Yes"), ("no", "No"))
WORDS = {"yes": "the target is there", "no": "the target is not there"}


def verdicts(evidence: Evidence) -> list[str]:
    """What the comparisons say; where there is one result, what it says about positions."""
    if evidence.comparisons:
        return [comparison.pair.verdict for comparison in evidence.comparisons]
    return [_alone(row.report) for row in evidence.results]


def _alone(report: ResultReport) -> str:
    sides = [(rows_called(word, report.choice), side) for name, word in SIDES if (side := getattr(report, name))]
    rates = " and ".join(f"{PERCENT.with_unit(side.accuracy, '%')} of {called}" for called, side in sides)
    return f"On {report.items} items {report.label} answers {rates} rightly; {_positions(*sides[0])}."


def _positions(called: str, side: AnswerReport) -> str:
    """Of the margins where there are any, as in the tables: accuracies near 100 % hide what margins show."""
    what, found, factor, form, unit = "answer", side.spread, 100, ".1f", "points"
    if side.margin_spread is not None:
        what, found, factor, form, unit = "margin", side.margin_spread, 1, ".2f", "logits"
    sd = found.sd
    spread = f"sd over the cells {factor * sd.observed:{form}} {unit}, by chance {factor * sd.expected:{form}}"
    if sd.p < 0.05:
        return f"on {called} the {what} depends on the position ({spread}, {p_text(sd.p)})"
    return f"on {called} no effect of the position on the {what} is shown ({spread}, {p_text(sd.p)})"


def map_rows(evidence: Evidence) -> list[MapRow]:
    """For Yes rows, then No rows: every result's map, then the differences from the first."""
    reports, pairs = _reports(evidence), [comparison.pair for comparison in evidence.comparisons]
    scale, rows = accuracy_scale(reports), []
    differences = difference_scale(pairs) if pairs else None
    for name, word in SIDES:
        panels: list[Any] = [(k, accuracy_panel(report, name, scale, named=True)) for k, report in enumerate(reports)]
        for number, pair in enumerate(pairs):
            assert differences is not None
            panels.append((number + 1, difference_panel(pair, name, reports[0].shape, differences)))
        maps = [CellMap(_titled(panel, k, reports), word, k) for k, panel in panels if panel]
        if maps:
            title = "choices, by the place of the right option" if reports[0].choice else f"{word} rows: {WORDS[name]}"
            rows.append(MapRow(title, maps))
    return rows


def _titled(panel: Any, number: int, reports: Sequence[ResultReport]) -> Any:
    """A difference says of which result it is, where there are several."""
    if panel.scale.diverging and len(reports) > 2:
        return type(panel)(**vars(panel) | {"title": f"{reports[number].label} − {reports[0].label}"})
    return panel


def margin_rows(evidence: Evidence) -> list[MapRow]:
    """The mean margins as maps."""
    rows, reports = [], _reports(evidence)
    for name, word in SIDES:
        scale = margin_scale(reports, name)
        if scale is None:
            continue
        panels = [margin_panel(report, name, scale) for report in reports]
        rows.append(MapRow(f"{word} rows", [CellMap(p, word, k) for k, p in enumerate(panels) if p]))
    return rows


def margin_plots(evidence: Evidence) -> list[Plot]:
    """Mean margin per cell with its interval, a marker per result."""
    plots, reports = [], _reports(evidence)
    cells = [name.replace("_", " ") for name in reports[0].positions]
    for name, word in SIDES:
        sides = [(report.label, getattr(report, name)) for report in reports]
        series = [
            Series(label, [_point(c) for c in side.margin_cells]) for label, side in sides if side and side.margin_cells
        ]
        if series:
            title = f"Mean margin per position, {word} rows"
            plots.append(interval_plot(title, cells, series, x_label="logits, 95 % intervals over items", form=".2f"))
    return plots


def roc_plot(results: Sequence[ProbeResult], evidence: Evidence) -> Plot | None:
    """A curve per result that has margins on both answers, its AUC in the legend."""
    series = []
    for result, row in zip(results, evidence.results, strict=True):
        if not (row.roc and row.report.auc):
            continue
        points = [
            Point(hit, x=false_alarm) for false_alarm, hit in zip(row.roc.false_alarms, row.roc.hits, strict=True)
        ]
        auc = row.report.auc
        label = f"{result.label}: AUC {auc.estimate:.3f} ({auc.low:.3f} to {auc.high:.3f})"
        series.append(Series(label, points, marked=False))
    if not series:
        return None
    chance = Series("by chance", [Point(0.0, x=0.0), Point(1.0, x=1.0)], dashed=True, marked=False)
    x_label, y_label = "share of No rows with a Yes", "share of Yes rows with a Yes"
    return line_plot("ROC of the margins", [*series, chance], x_label=x_label, y_label=y_label, unit_square=True)


def forest(evidence: Evidence) -> list[Plot]:
    """The evidence's panels: a row per result."""
    labels = [report.label for report in _reports(evidence)]
    plots = []
    for name, intervals in figure_panels(evidence):
        against = "against" in name
        rows = labels[1:] if against else labels
        points = [_point(interval) for interval in (intervals[1:] if against else intervals)]
        title = name.replace("\n", " ")
        plots.append(interval_plot(title, rows, [Series("estimate", points)], zero=against, form=".3g"))
    return plots


def tables(evidence: Evidence, controls: Sequence[Control]) -> list[Table]:
    """The evidence's tables, who became right or wrong per position, and what is said without the image."""
    found = evidence_tables(evidence)
    for comparison in evidence.comparisons:
        pair = comparison.pair
        title = (
            f"{pair.second} against {pair.first}, per position: points, rows gained and lost, exact McNemar and Holm"
        )
        found.append(pair_positions(pair, _reports(evidence)[0].positions)._replace(title=title))
    if controls:
        found.append(controls_table(controls))
    return found


def _reports(evidence: Evidence) -> list[ResultReport]:
    return [row.report for row in evidence.results]


def _point(interval: Interval) -> Point:
    return Point(interval.estimate, interval.low, interval.high)
