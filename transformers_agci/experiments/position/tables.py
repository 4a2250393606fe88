"""What the position probe found, as tables for the terminal."""

from collections.abc import Sequence

from transformers_agci.errors import counted
from transformers_agci.experiments.position.comparison import PairReport, items_text
from transformers_agci.experiments.position.measures import AnswerReport, ResultReport
from transformers_agci.experiments.position.results import rows_called
from transformers_agci.report.table import (
    ABSENT,
    CHANGE,
    NUMBER,
    PERCENT,
    POINTS,
    Style,
    Table,
    format_table,
    p_text,
    p_value,
)
from transformers_agci.statistics import NO_DATA, Spread, TestResult
from transformers_agci.statistics.evenness import MARGIN_UNIT, MARGIN_UNIT_NOTE, Change, Level, signed_root

VARIANCE = Style(digits=4)
VARIANCE_CHANGE = Style(digits=4, signed=True)
POINTS_SQUARED = Style(1e4, 2)
POINTS_SQUARED_CHANGE = Style(1e4, 2, signed=True)


def result_text(report: ResultReport, results: int = 1) -> str:
    """The numbers of one of several results: overall, evenness, per position."""
    counts = ", ".join(
        counted(side.accuracy.n, "choice" if report.choice else f"{name} row") for name, side in _sides(report)
    )
    lines = [
        f"{report.label}: {counted(report.items, 'item')} on a {report.shape[0]}x{report.shape[1]} grid, {counts}",
        "",
    ]
    lines += [_overall(report), "", _evenness(report), "", _tests(report), "", _positions(report)]
    if report.d_prime_cells:
        lines += ["", _detection(report)]
    lines += _remarks(report, results)
    return "\n".join(lines)


def _sides(report: ResultReport) -> list[tuple[str, AnswerReport]]:
    return [(name, side) for name, side in (("Yes", report.yes), ("No", report.no)) if side]


def _overall(report: ResultReport) -> str:
    rows = [
        [
            f"accuracy, {rows_called(name, report.choice)}",
            PERCENT.write(side.accuracy),
            str(side.accuracy.n),
            str(side.unreadable),
        ]
        for name, side in _sides(report)
    ]
    if report.balanced and report.d_prime and report.criterion:
        rows.append(["balanced accuracy", PERCENT.write(report.balanced), str(report.balanced.n), ""])
        rows.append(["d' (log-linear)", NUMBER.write(report.d_prime), str(report.d_prime.n), ""])
        rows.append(["criterion c (below 0: leans to Yes)", NUMBER.write(report.criterion), "", ""])
    if report.auc:
        rows.append(["AUC of the margins", Style(digits=3).write(report.auc), str(report.auc.n), ""])
    if report.best_threshold:
        best = report.best_threshold
        name = f"balanced accuracy at its best threshold ({best.threshold:+.2f}), chosen on these rows"
        rows.append([name, PERCENT.write(best.balanced), str(best.balanced.n), ""])
    if report.matched:
        name = f"accuracy, Yes rows, where {100 * report.matched.no_rate:.0f} % of No rows are right"
        rows.append([name, PERCENT.write(report.matched.accuracy), str(report.matched.accuracy.n), ""])
    for name, side in _sides(report):
        if side.margin:
            rows.append([f"margin, {name} rows (logits)", NUMBER.write(side.margin), str(side.margin.n), ""])
    return format_table(["over all positions", "estimate [95 %]", "n", "unreadable"], rows)


def _evenness(report: ResultReport) -> str:
    rows = []
    for name, side in _sides(report):
        called = rows_called(name, report.choice)
        rows.append([f"sd, {called} (points)", *_spread(side.spread.sd, 100), _unbiased(side.unevenness, 100)])
        rows.append([f"max - min, {called} (points)", *_spread(side.spread.gap, 100), ""])
        if side.margin_spread:
            spread = _spread(side.margin_spread.sd, 1)
            rows.append([f"sd of margin, {called} (logits)", *spread, ""])
            rows.append([f"the same in {MARGIN_UNIT}, {called}", *[""] * 4, _unbiased(side.margin_unevenness)])
    table = format_table(["over the cells", "observed", "by chance", "95 % below", "p", "without bias"], rows)
    return f"{table}\n({MARGIN_UNIT_NOTE})" if any(side.margin for _, side in _sides(report)) else table


def _spread(spread: Spread, factor: float) -> list[str]:
    digits = 1 if factor == 100 else 2
    return [f"{factor * value:.{digits}f}" for value in spread[:3]] + [p_value(spread.p)]


def _unbiased(level: Level | None, factor: float = 1) -> str:
    """The standard deviation without the part of chance; below zero where there is less than chance makes."""
    return ABSENT if level is None else f"{factor * signed_root(level.estimate):.{1 if factor == 100 else 2}f}"


def _tests(report: ResultReport) -> str:
    """Is there an effect of the position: three tests; and do rows fail at some positions more than at others?"""
    rows = []
    for name, side in _sides(report):
        called = rows_called(name, report.choice)
        rows.append([f"accuracy, {called}", p_value(side.spread.sd.p), *map(_test, (side.hotelling, side.cochran))])
        if side.margin_spread:
            rows.append([f"margin, {called}", p_value(side.margin_spread.sd.p), _test(side.margin_hotelling), ""])
        failed = sum(side.missing_cells) + side.unreadable
        rows.append([f"missing or unreadable, {called}: {failed}", "", "", _test(side.failures)])
    return format_table(["effect of the position on", "permutation p", "Hotelling T^2, p", "Cochran's Q, p"], rows)


def _test(test: TestResult | None) -> str:
    return ABSENT if test is None else f"{test.statistic:.1f}, {p_text(test.p)}"


def _positions(report: ResultReport) -> str:
    header, columns = ["position"], [list(report.positions)]
    groups: list[int] = []  # columns of one answer
    for name, side in _sides(report):
        header += ["right %  [95 %]" if report.choice else f"{name} %  [95 %]", "n", "unreadable"]
        columns += [
            [PERCENT.write(cell) for cell in side.cells],
            [str(cell.n) for cell in side.cells],
            [str(count) for count in side.unreadable_cells],
        ]
        if side.margin_cells:
            header.append("margin")
            columns.append([NUMBER.value(cell.estimate) for cell in side.margin_cells])
        groups.append(len(header) - 1 - sum(groups))
    if report.balanced_cells:
        header.append("balanced %")
        columns.append([PERCENT.write(cell) for cell in report.balanced_cells])
        groups.append(1)
    return format_table(header, list(zip(*columns, strict=True)), groups)


def _detection(report: ResultReport) -> str:
    """What each cell can tell apart, and where its threshold lies."""
    assert report.d_prime_cells and report.criterion_cells
    header = ["position", "d' [95 %]", "c [95 %]"]
    columns = [
        list(report.positions),
        [NUMBER.write(cell) for cell in report.d_prime_cells],
        [NUMBER.write(cell) for cell in report.criterion_cells],
    ]
    if report.auc_cells:
        header.append("AUC [95 %]")
        columns.append([Style(digits=3).write(cell) for cell in report.auc_cells])
    if report.matched:
        header.append(f"Yes % at {100 * report.matched.no_rate:.0f} % of No right [95 %]")
        columns.append([PERCENT.write(cell) for cell in report.matched.cells])
    return format_table(header, list(zip(*columns, strict=True)))


def _remarks(report: ResultReport, results: int) -> list[str]:
    lines = []
    if report.choice:
        lines += [
            "",
            "Choices between options: a guess is right once in as many as there are options, and a map may show that "
            "a model prefers a letter. There are no negatives, and so no d' and no margins.",
        ]
    elif report.no is None:
        lines += [
            "",
            "Only Yes rows: accuracy is the Yes-rate and cannot tell sight from a habit of saying Yes; "
            "give negatives for balanced accuracy and d'.",
        ]
    elif report.yes is None:
        lines += [
            "",
            "Only No rows: accuracy is the No-rate and cannot tell sight from a habit of saying No; "
            "give Yes rows for balanced accuracy and d'.",
        ]
    if report.best_threshold:
        lines += [
            "",
            "The best threshold is chosen on the rows it is measured on: that balanced accuracy is too high for other "
            "rows, and its interval takes the threshold as given.",
        ]
    lines += [f"\n{note}" for note in report.notes]
    lines += [
        f"\n{counted(side.without_margin, f'{name} row')} {'has' if side.without_margin == 1 else 'have'} no margin "
        f"and {'is' if side.without_margin == 1 else 'are'} left out of what is measured on margins."
        for name, side in _sides(report)
        if side.without_margin
    ]
    lines += [f"\n{note}" for note in failing_positions(report, results)]
    return lines


def failing_positions(report: ResultReport, results: int = 1) -> list[str]:
    """Where rows fail at some positions more than at others; p is Bonferroni's, for both answers of all results."""
    sides = [(name, side.failures) for name, side in _sides(report) if side.failures]
    tests = results * len(sides)
    return [
        f"Rows of {report.label} fail at some positions more than at others ({rows_called(name, report.choice)}: "
        f"{p_text(min(1.0, tests * test.p))}{f', corrected for {tests} tests' if tests > 1 else ''}): what is missing "
        "may be what was wrong, and the tests of positions cannot be trusted."
        for name, test in sides
        if tests * test.p <= 0.05
    ]


def pair_text(pair: PairReport) -> str:
    """The difference of two results over all positions: accuracy, signal detection, evenness."""
    lines = [differences(pair).text, "", _evenness_table(pair)]
    return "\n".join([pair.baseline, "", *lines] if pair.baseline else lines)


def differences(pair: PairReport) -> Table:
    """Accuracy and signal detection of the second result less those of the first."""
    rows = []
    for name, change in (("Yes", pair.yes), ("No", pair.no)):
        if change:
            overall = change.accuracy.overall
            rows.append([f"accuracy, {rows_called(name, pair.choice)} (points)", POINTS.write(overall), str(overall.n)])
    for name, value, style in (
        ("balanced accuracy (points)", pair.balanced, POINTS),
        ("d'", pair.d_prime, CHANGE),
        ("criterion c", pair.criterion, CHANGE),
        ("AUC of the margins", pair.auc, Style(digits=3, signed=True)),
    ):
        if value:
            rows.append([name, style.write(value), str(value.n)])
    title = f"{pair.second} minus {pair.first}, {items_text(pair)} (paired; intervals count items)"
    if pair.left_out:
        title += (
            f"\non the {counted(pair.shared, 'row')} that both have; {counted(pair.left_out, 'row')} that only one of "
            f"the two results has {'is' if pair.left_out == 1 else 'are'} left out."
        )
    return Table(title, ["difference", "estimate [95 %]", "n"], rows)


def _evenness_table(pair: PairReport) -> str:
    found = pair.evenness
    rows = [
        _change(f"margins, Yes rows, in {MARGIN_UNIT}", found.margin),
        _change(f"margins, Yes rows, in {found.other_unit}", found.margin_other_unit),
        _change(f"margins, No rows, in {MARGIN_UNIT}", found.margin_no),
        _change("AUC of the cells", found.auc, Style(digits=5), Style(digits=5, signed=True)),
        _change(f"d' of the cells{cells_with_d_prime(pair) or _too_few_d_prime(pair)}", found.d_prime),
        _change("accuracy (points^2)", found.accuracy, POINTS_SQUARED, POINTS_SQUARED_CHANGE),
    ]
    rows = rows[-1:] if pair.choice else rows  # what is left of a choice without margins
    if found.threshold_matched:
        matched = found.threshold_matched
        name = f"accuracy, first shifted by {matched.shift:+.2f} to the same Yes-rate (points^2)"
        rows.append(_change(name, matched.accuracy, POINTS_SQUARED, POINTS_SQUARED_CHANGE))
    table = format_table(["variance over the cells, without bias", "first", "second", "difference [95 %]"], rows)
    if found.threshold_matched and found.threshold_matched.balanced:
        balanced = found.threshold_matched.balanced
        table += (
            f"\n\nAt the same Yes-rate (both by their margins) balanced accuracy is {100 * balanced.first:.1f} % and "
            f"{100 * balanced.second:.1f} %: {POINTS.write(balanced)} points."
        )
    return table


def cells_with_d_prime(pair: PairReport) -> str:
    """How many cells have a d', where not all have one: " (7 of 9)"."""
    having, side = pair.evenness.d_prime_cells, pair.yes
    if side is None or pair.evenness.d_prime is None or having == len(side.accuracy.cells):
        return ""
    return f" ({having} of {len(side.accuracy.cells)})"


def _too_few_d_prime(pair: PairReport) -> str:
    """Why no cells' d' are compared, where both answers are there."""
    if pair.evenness.d_prime is not None or not (pair.yes and pair.no):
        return ""
    having, cells = pair.evenness.d_prime_cells, len(pair.yes.accuracy.cells)
    return f" ({having} of {cells} have one: too few)" if having < cells else ""


def _change(name: str, change: Change | None, style: Style = VARIANCE, signed: Style = VARIANCE_CHANGE) -> list[str]:
    if change is None:
        return [name, ABSENT, ABSENT, ABSENT]
    return [name, style.value(change.first), style.value(change.second), signed.write(change)]


def pair_positions(pair: PairReport, positions: Sequence[str]) -> Table:
    """The difference per position: points, intervals of one and of all at once, McNemar's p and Holm's."""
    header, columns = ["position"], [list(positions)]
    groups: list[int] = []  # columns of one answer
    for name, change in (("Yes", pair.yes), ("No", pair.no)):
        if change:
            header += [
                "points [95 %]" if pair.choice else f"{name} [95 %]",
                "[all at once]",
                "gained",
                "lost",
                "McNemar p",
                "Holm",
            ]
            columns += [
                [POINTS.write(cell) for cell in change.accuracy.cells],
                [POINTS.bounds(cell) for cell in change.simultaneous_cells],
                [str(test.gained) for test in change.mcnemar_cells],
                [str(test.lost) for test in change.mcnemar_cells],
                [p_value(test.p) for test in change.mcnemar_cells],
                [p_value(p) for p in change.holm_cells],
            ]
            groups.append(len(header) - 1 - sum(groups))
    return Table("", header, list(zip(*columns, strict=True)), groups)


ALL_AT_ONCE = (
    "([all at once]: hulls of Tango's score interval, surer so that all cells of a column hold together, and of "
    "Agresti and Min's interval of the cell alone)"
)


def summary_text(results: Sequence[ResultReport], pair: PairReport) -> str:
    """Two results and their difference on one screen: per position, then over all of them."""
    header, columns = ["correct, %"], [[*results[0].positions, "all positions"]]
    for name in ("yes", "no"):
        change, side = getattr(pair, name), rows_called(name, pair.choice)
        if change is None:
            continue
        for report, label in zip(results, (f"{side}: {_short(pair.first)}", _short(pair.second)), strict=True):
            answer: AnswerReport = getattr(report, name)
            header.append(label)
            columns.append([PERCENT.value(cell.estimate) for cell in (*answer.cells, answer.accuracy)])
        header.append("difference [95 %]")
        columns.append([POINTS.write(cell) for cell in (*change.accuracy.cells, change.accuracy.overall)])
    positions = format_table(header, list(zip(*columns, strict=True)))
    return f"{positions}\n\n{_summary_overall(results, pair)}"


def _short(label: str) -> str:
    """ "AGCI (lambda 0.5)" -> "AGCI", for the head of a column."""
    return label.split(" (", maxsplit=1)[0]


def _summary_overall(results: Sequence[ResultReport], pair: PairReport) -> str:
    rows = []
    for name, field, level, change in (
        ("balanced accuracy, %", "balanced", PERCENT, POINTS),
        ("d'", "d_prime", NUMBER, CHANGE),
        ("AUC of the margins", "auc", Style(digits=3), Style(digits=3, signed=True)),
    ):
        difference = getattr(pair, field)
        if difference:
            levels = [level.write(getattr(report, field) or NO_DATA) for report in results]
            rows.append([name, *levels, change.write(difference)])
    for name in ("yes", "no"):
        if getattr(pair, name):
            spreads = [getattr(report, name).spread.sd for report in results]
            texts = [f"{100 * s.observed:.1f} (chance {100 * s.expected:.1f}, {p_text(s.p)})" for s in spreads]
            rows.append([f"sd over positions, {rows_called(name, pair.choice)}", *texts, ""])
    margin = pair.evenness.margin
    if margin:
        roots = [NUMBER.value(signed_root(value)) for value in margin[:2]]
        rows.append([f"sd of margins, in {MARGIN_UNIT}", *roots, pair.evenness.verdict])
    unreadable = [sum(side.unreadable for _, side in _sides(report)) for report in results]
    rows.append(["unreadable answers", *map(str, unreadable), ""])
    return format_table(["over all positions", *(report.label for report in results), "difference [95 %]"], rows)
