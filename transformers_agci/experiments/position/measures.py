"""What one result of the position probe shows, in numbers: accuracy, evenness over the cells, signal detection."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.errors import counted
from transformers_agci.experiments.defaults import DRAWS
from transformers_agci.experiments.position.results import ProbeResult, Tables
from transformers_agci.statistics import Interval, SpreadTest, TestResult, evenness, signal_detection, thresholds
from transformers_agci.statistics.intervals import items_with_rows

Quantity = Literal["everything", "accuracies", "shares of Yes"]  # what stands beside a note


@dataclass(frozen=True)
class ResamplingConfig:
    """How many permutations the null of "no position effect" uses, and their seed."""

    permutations: int = DRAWS
    seed: int = 0


@dataclass(frozen=True)
class AnswerReport:
    """All Yes rows, or all No rows: accuracies are shares (0..1), margins are logits; lists are per cell.

    `unevenness` is the unbiased variance of the accuracies over the cells (shares squared), `margin_unevenness` that of
    the margins in units of their sd within a cell and an answer, pooled over the cells and, where a result has margins
    of both, over both answers: the unit in which two results are compared. `spread` has the plain deviations beside
    chance. What cannot be had is None: margins where the result carries none, tests where nothing varies.
    """

    accuracy: Interval
    cells: list[Interval]
    unreadable: int
    unreadable_cells: list[int]
    missing_cells: list[int]
    spread: SpreadTest
    hotelling: TestResult | None
    cochran: TestResult | None
    failures: TestResult | None
    unevenness: evenness.Level | None
    margin: Interval | None
    margin_cells: list[Interval] | None
    margin_spread: SpreadTest | None
    margin_hotelling: TestResult | None
    margin_unevenness: evenness.Level | None
    without_margin: int  # rows that carry none, in a result that carries some
    against_margin: int  # a No with a margin above zero, or a Yes with one below


@dataclass(frozen=True)
class MatchedRate:
    """Accuracy on Yes rows at the threshold that answers the share `no_rate` of the No rows rightly."""

    no_rate: float
    threshold: float
    accuracy: Interval
    cells: list[Interval]


@dataclass(frozen=True)
class BestThreshold:
    """The threshold with the largest balanced accuracy on these very rows, and that accuracy.

    Both are optimistic: the interval takes the threshold as given, though it was chosen on the same rows.
    """

    threshold: float
    balanced: Interval


@dataclass(frozen=True)
class ResultReport:
    """One result; what needs both answers is None where there are only Yes rows or only No rows."""

    label: str
    items: int
    shape: tuple[int, int]
    positions: tuple[str, ...]
    yes: AnswerReport | None
    no: AnswerReport | None
    balanced: Interval | None
    balanced_cells: list[Interval] | None
    d_prime: Interval | None
    d_prime_cells: list[Interval] | None
    criterion: Interval | None
    criterion_cells: list[Interval] | None
    auc: Interval | None
    auc_cells: list[Interval] | None
    matched: MatchedRate | None
    best_threshold: BestThreshold | None
    choice: bool  # `yes` are choices between options
    notes: list[str]  # what must be said beside the numbers


def against_margin(result: ProbeResult, beside: Quantity = "everything") -> str:
    """How many answers go against their margin, and the first of them; "" where none does.

    The margin of a row is above zero where Yes has the larger logit, so that an engine which picks the likelier word
    makes no such row; one that changes logits on the way to the answer may.
    """
    found = [(name, t.against_margin) for name, t in (("Yes", result.yes), ("No", result.no)) if t is not None]
    count = sum(int(table.sum()) for _, table in found)
    if not count:
        return ""
    name, item, cell = next((name, *np.argwhere(table)[0]) for name, table in found if table.any())
    go, theirs = ("goes", "its") if count == 1 else ("go", "their")
    what = "accuracies and d'" if beside == "everything" else beside
    return (
        f"{counted(count, 'answer')} of {result.label} {go} against {theirs} margin (a No above zero or a Yes below), "
        f"the first on the {name} row of {result.items[item]} at {result.cells[cell]}: {what} count the "
        "answers, everything about margins the margins."
    )


def unreadable_replies(result: ProbeResult, beside: Quantity = "everything") -> str:
    """How many replies are neither of the two answers, and what is made of them; "" where there are none."""
    tables = [t for t in (result.yes, result.no) if t is not None]
    count = sum(int(np.nansum(t.unreadable)) for t in tables)
    if not count:
        return ""
    are, them = ("is", "it") if count == 1 else ("are", "them")
    said = f"{count} of {counted(sum(t.rows for t in tables), 'reply', 'replies')} of {result.label} {are}"
    if result.choice:
        return f"{said} no letter: accuracies count {them} as wrong."
    if beside == "shares of Yes":
        return f"{said} neither Yes nor No: the shares of Yes leave {them} out."
    left_out = ""
    if len(tables) == 2 and beside == "everything":
        left_out = f"; d', c, V of d', lambda x truth and the shares of Yes leave {them} out, in both of two results"
    return f"{said} neither Yes nor No: accuracies count {them} as wrong{left_out}."


def notes_on(result: ProbeResult, beside: Quantity = "everything") -> list[str]:
    """What must be said beside the numbers of one result."""
    return list(filter(None, [unreadable_replies(result, beside), against_margin(result, beside)]))


def measure(result: ProbeResult, resampling: ResamplingConfig | None = None) -> ResultReport:
    """All numbers of one result."""
    resampling = resampling or ResamplingConfig()
    balanced = d_prime = criterion = auc = None
    matched = best = None
    yes, no = result.yes, result.no
    if yes is not None and no is not None:
        balanced = signal_detection.balanced_intervals(yes.correct, no.correct)
        d_prime = signal_detection.d_prime_intervals(yes.said_yes, no.said_yes)
        criterion = signal_detection.criterion_intervals(yes.said_yes, no.said_yes)
        if yes.has_margins and no.has_margins:
            auc = signal_detection.auc_intervals(yes.margin, no.margin)
            matched, best = _matched(yes, no), _best(yes, no)
    return ResultReport(
        label=result.label,
        items=len(result.items),
        shape=result.shape,
        positions=result.cells,
        yes=None if yes is None else _measure_answer(yes, no, resampling),
        no=None if no is None else _measure_answer(no, yes, resampling),
        balanced=balanced and balanced.overall,
        balanced_cells=balanced and balanced.cells,
        d_prime=d_prime and d_prime.overall,
        d_prime_cells=d_prime and d_prime.cells,
        criterion=criterion and criterion.overall,
        criterion_cells=criterion and criterion.cells,
        auc=auc and auc.overall,
        auc_cells=auc and auc.cells,
        matched=matched,
        best_threshold=best,
        choice=result.choice,
        notes=notes_on(result),
    )


def _measure_answer(tables: Tables, others: Tables | None, resampling: ResamplingConfig) -> AnswerReport:
    """The rows of one answer; those of the other one are needed for the unit of the margins only."""
    beside = others.margin if others is not None and others.has_margins else None
    margins = tables.margin if tables.has_margins else None
    margin = None if margins is None else st.mean_over_items(margins)
    absent = np.isnan(tables.correct)
    known = ~absent.all(axis=1)  # an item without a row of this answer was never asked
    return AnswerReport(
        accuracy=st.clustered_proportion(tables.correct),
        cells=st.cell_proportions(tables.correct),
        unreadable=int(np.nansum(tables.unreadable)),
        unreadable_cells=[int(count) for count in np.nansum(tables.unreadable, axis=0)],
        missing_cells=[int(count) for count in absent[known].sum(axis=0)],
        spread=st.permutation_null(tables.correct, resampling.permutations, resampling.seed),
        hotelling=st.hotelling(tables.correct),
        cochran=st.cochran_q(tables.correct),
        failures=st.failures_by_position(tables.correct, tables.unreadable, resampling.seed),
        unevenness=evenness.level(evenness.of_means(tables.correct[known])),
        margin=margin and margin.overall,
        margin_cells=margin and margin.cells,
        margin_spread=None
        if margins is None
        else st.permutation_null(margins, resampling.permutations, resampling.seed),
        margin_hotelling=None if margins is None else st.hotelling(margins),
        margin_unevenness=None
        if margins is None
        else evenness.level(evenness.of_standardized_margins(margins, beside), items_with_rows(margins)),
        without_margin=0 if margins is None else int(np.isnan(margins[~absent]).sum()),
        against_margin=int(tables.against_margin.sum()),
    )


def _matched(yes: Tables, no: Tables) -> MatchedRate | None:
    found = thresholds.yes_accuracy_at_no_rate(yes.margin, no.margin)
    if found is None:
        return None
    return MatchedRate(thresholds.NO_RATE, found.threshold.value, found.accuracy.overall, found.accuracy.cells)


def _best(yes: Tables, no: Tables) -> BestThreshold | None:
    threshold = thresholds.best_threshold(yes.margin, no.margin)
    if threshold is None:
        return None
    above = [np.where(np.isnan(t.margin), np.nan, t.margin > threshold) for t in (yes, no)]
    return BestThreshold(threshold, signal_detection.balanced_intervals(above[0], 1 - above[1]).overall)
