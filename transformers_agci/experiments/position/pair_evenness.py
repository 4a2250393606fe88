"""Whether one of two results on the same items is more even over the cells, by which measures, and what may be said.

The verdict rests on the margins of the Yes rows, which have to agree in two units, or on d' where a result has no
margins; accuracies alone move with the threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transformers_agci import statistics as st
from transformers_agci.experiments.position.evenness_verdict import (
    LOGITS,
    Answered,
    Both,
    verdict_on_evenness,
)
from transformers_agci.statistics import Floats, evenness, thresholds
from transformers_agci.statistics.evenness import Change, Verdict
from transformers_agci.statistics.intervals import items_with_rows


@dataclass(frozen=True)
class ThresholdMatched:
    """The method against the baseline with a constant added to its margins, so that both say Yes equally often.

    `shift` is that constant (logits), `accuracy` the unbiased variance over the cells of the accuracy on Yes rows,
    `balanced` the balanced accuracy (None without No rows); `first` is the shifted baseline.
    """

    shift: float
    accuracy: Change | None
    balanced: Change | None


@dataclass(frozen=True)
class EvennessReport:
    """Unbiased variances over the cells (may be negative) of both results, their difference, and what it allows to say.

    margin             margins of the Yes rows in `evenness.MARGIN_UNIT`
    margin_other_unit  the same in the unit `other_unit`; a verdict needs both to agree
    margin_no          `margin` for the No rows
    auc, d_prime       per-cell AUC and probit d'; the latter over the cells that have enough answers in both results
    d_prime_cells      how many cells these are
    d_prime_relative   d' as a multiple of its mean over the cells, which confirms a change of d'
    accuracy           accuracies of the Yes rows, or of the No rows where there are no Yes rows
    unit_items         items behind either of `units`
    """

    margin: Change | None
    margin_other_unit: Change | None
    other_unit: str
    margin_no: Change | None
    auc: Change | None
    d_prime: Change | None
    d_prime_cells: int
    d_prime_relative: Change | None
    accuracy: Change | None
    threshold_matched: ThresholdMatched | None
    unit_items: tuple[int, int]
    verdict: Verdict
    reason: str  # what the verdict rests on, or why there is none

    @property
    def units(self) -> tuple[Change | None, Change | None]:
        """The two changes of which a verdict needs both."""
        if self.margin or self.margin_other_unit:
            return self.margin, self.margin_other_unit
        return self.d_prime, self.d_prime_relative

    @property
    def decisive(self) -> Change | None:
        """The change that a verdict names."""
        return self.margin or self.d_prime


def compare_evenness(
    yes: Both | None, no: Both | None, without_margins: str = "there are no margins", *, choice: bool = False
) -> EvennessReport:
    """Every measure of evenness, and the verdict: by margins of the Yes rows, by d' where a result has no margins.

    `without_margins` says, where there are none, whose they are; `choice`: the rows are choices between options.
    """
    side = yes or no
    assert side is not None
    d_prime: tuple[Change | None, Change | None] = (None, None)
    other_unit = "the distance of Yes and No rows" if yes and no else LOGITS
    cells = 0
    if yes and no:
        answered = Answered.of(yes, no)
        d_prime, cells = answered.in_both_units(), int(answered.cells.sum())
    margin = _compare_standardized(yes, no) if yes and yes[0].has_margins else None
    margin_no = _compare_standardized(no, yes) if no and no[0].has_margins else None
    auc, other = _auc_and_other_unit(yes, no)
    said, reason = verdict_on_evenness(yes, no, (margin, other, other_unit), without_margins)
    if choice:
        said, reason = "cannot tell", "choices have no margins, and accuracies alone get nearer where all of them rise"
    return EvennessReport(
        margin=margin,
        margin_other_unit=other,
        other_unit=other_unit,
        margin_no=margin_no,
        auc=auc,
        d_prime=d_prime[0],
        d_prime_cells=cells,
        d_prime_relative=d_prime[1],
        accuracy=evenness.compare(*(evenness.of_means(_with_rows(tables.correct)) for tables in side)),
        threshold_matched=_threshold_matched(yes, no) if yes else None,
        unit_items=_items_of_units(yes, no),
        verdict=said,
        reason=reason,
    )


def _auc_and_other_unit(yes: Both | None, no: Both | None) -> tuple[Change | None, Change | None]:
    """AUC, and the margins of the Yes rows by their distance from the No rows, or in logits where there are none."""
    if yes and no and yes[0].has_margins and no[0].has_margins:
        return _compare_both(evenness.of_auc, yes, no), _compare_both(evenness.of_margins_by_distance, yes, no)
    if yes and no is None and yes[0].has_margins:
        return None, evenness.compare(*(evenness.of_means(_with_rows(tables.margin)) for tables in yes))
    return None, None


def _items_of_units(yes: Both | None, no: Both | None) -> tuple[int, int]:
    if yes is None:
        return 0, 0
    margins = bool(yes[0].has_margins)
    sides = [pair[0].margin if margins else pair[0].correct for pair in (yes, no) if pair]
    both = items_with_rows(*sides)
    return (items_with_rows(sides[0]) if margins else both), both


def _compare_both(measure: Callable[[Floats, Floats], Floats | None], yes: Both, no: Both) -> Change | None:
    contributions = (measure(yes[i].margin, no[i].margin) for i in (0, 1))
    return evenness.compare(*contributions, items=items_with_rows(yes[0].margin, no[0].margin))


def _with_rows(table: Floats) -> Floats:
    """Without the items that have no row; both of two results have the same."""
    found: Floats = table[~np.isnan(table).all(axis=1)]
    return found


def _compare_standardized(side: Both, others: Both | None) -> Change | None:
    """V of the margins of one answer in `evenness.MARGIN_UNIT`, to which those of the other answer belong, too."""
    beside = [tables.margin for tables in others] if others and others[0].has_margins else [None, None]
    standardized = (evenness.of_standardized_margins(side[i].margin, beside[i]) for i in (0, 1))
    return evenness.compare(*standardized, items=items_with_rows(side[0].margin))


def _threshold_matched(yes: Both, no: Both | None) -> ThresholdMatched | None:
    """Shift the baseline's margins until it says Yes as often as the method, and compare with that.

    Both are read by their margins: a reply may be unreadable, or go against its margin, in one and not in the other.
    """
    pairs = [pair for pair in (yes, no) if pair]
    if not all(pair[0].has_margins for pair in pairs):
        return None
    margins = [pair[0].margin for pair in pairs]
    seen = [np.isfinite(table) for table in margins]
    said = [np.where(have, pair[1].margin > 0, 0.0) for have, pair in zip(seen, pairs, strict=True)]
    rows, yeses = int(sum(have.sum() for have in seen)), int(sum(table.sum() for table in said))
    if not all(have.any(axis=0).all() for have in seen):
        return None
    threshold = thresholds.threshold_for_count(margins, yeses)
    above = [np.nan_to_num(threshold.above(table)) for table in margins]
    drift: Floats = sum((a - b).sum(axis=1) for a, b in zip(said, above, strict=True)) * (len(margins[0]) / rows)
    at_yes, *at_no = (thresholds.at_threshold(table, threshold, drift, margins) for table in margins)
    second = [evenness.of_means(np.where(have, yeses, np.nan)) for have, yeses in zip(seen, said, strict=True)]
    balanced = None
    if at_no and second[0] is not None and second[1] is not None:
        balanced = _level_change(
            (_over_rows(at_yes, seen[0]) + 1 - _over_rows(at_no[0], seen[1])) / 2,
            (_over_rows(second[0], seen[0]) + 1 - _over_rows(second[1], seen[1])) / 2,
            items_with_rows(*margins),
        )
    accuracy = evenness.compare(at_yes, second[0], items=items_with_rows(yes[0].margin))
    return ThresholdMatched(-threshold.value, accuracy, balanced)


def _over_rows(contributions: Floats, seen: NDArray[np.bool_]) -> Floats:
    """[items]: what each item contributes to the mean over all rows, from what it does to the cells' means."""
    found: Floats = contributions @ seen.sum(axis=0) / seen.sum()
    return found


def _level_change(first: Floats, second: Floats, items: int) -> Change | None:
    """The means of what all items contribute to two measures, and their paired difference with a t interval.

    `items` of them have rows of both answers.
    """
    n = len(first)
    single = max(first.std(ddof=1), second.std(ddof=1)) if n > 1 else 0.0
    if single == 0:
        return None
    error = max((second - first).std(ddof=1) / np.sqrt(n), single / np.sqrt(n * items))
    found = st.intervals.about(float((second - first).mean()), float(error), items - 1, n).within(-1, 1)
    return Change(float(first.mean()), float(second.mean()), *found[:3])
