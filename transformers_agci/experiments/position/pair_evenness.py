"""Whether one of two results on the same items is more even over the cells, by which measures, and what may be said.

The verdict rests on the margins of the Yes rows, which have to agree in two units, or on d' where a result has no
margins; accuracies alone move with the threshold.
"""

from dataclasses import dataclass

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.experiments.position.evenness_verdict import Both, compare_d_prime, verdict_on_evenness
from transformers_agci.statistics import Floats, evenness, signal_detection
from transformers_agci.statistics.evenness import Change, Verdict


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
    accuracy           accuracies of the Yes rows, or of the No rows where there are no Yes rows
    """

    margin: Change | None
    margin_other_unit: Change | None
    other_unit: str
    margin_no: Change | None
    auc: Change | None
    d_prime: Change | None
    accuracy: Change | None
    threshold_matched: ThresholdMatched | None
    verdict: Verdict
    reason: str  # what the verdict rests on, or why there is none


def compare_evenness(
    yes: Both | None, no: Both | None, items: int, without_margins: str = "there are no margins"
) -> EvennessReport:
    """Every measure of evenness, and the verdict: by margins of the Yes rows, by d' where a result has no margins.

    `without_margins` says, where there are none, whose they are.
    """
    side = yes or no
    assert side is not None
    auc = d_prime = margin = other = margin_no = None
    other_unit = "the distance of Yes and No rows" if yes and no else "logits"
    if yes and no:
        d_prime = compare_d_prime(yes, no)
        if yes[0].has_margins and no[0].has_margins:
            auc = evenness.compare(*(evenness.of_auc(yes[i].margin, no[i].margin) for i in (0, 1)))
            other = evenness.compare(*(evenness.of_margins_by_distance(yes[i].margin, no[i].margin) for i in (0, 1)))
    if yes and yes[0].has_margins:
        beside = [pair.margin for pair in no] if no and no[0].has_margins else [None, None]
        margin = evenness.compare(*(evenness.of_standardized_margins(yes[i].margin, beside[i]) for i in (0, 1)))
        if no is None:
            other = evenness.compare(*(evenness.of_means(tables.margin) for tables in yes))
    if no and no[0].has_margins:
        beside = [pair.margin for pair in yes] if yes and yes[0].has_margins else [None, None]
        margin_no = evenness.compare(*(evenness.of_standardized_margins(no[i].margin, beside[i]) for i in (0, 1)))
    said, reason = verdict_on_evenness(yes, no, items, (margin, other, other_unit), without_margins)
    return EvennessReport(
        margin=margin,
        margin_other_unit=other,
        other_unit=other_unit,
        margin_no=margin_no,
        auc=auc,
        d_prime=d_prime,
        accuracy=evenness.compare(*(evenness.of_means(tables.correct) for tables in side)),
        threshold_matched=_threshold_matched(yes, no) if yes else None,
        verdict=said,
        reason=reason,
    )


def _threshold_matched(yes: Both, no: Both | None) -> ThresholdMatched | None:
    """Shift the baseline's margins until it says Yes as often as the method, and compare with that."""
    pairs = [pair for pair in (yes, no) if pair]
    if not all(pair[0].has_margins for pair in pairs):
        return None
    margins = [pair[0].margin for pair in pairs]
    seen = [np.isfinite(table) for table in margins]
    said = [np.where(have, pair[1].said_yes, 0.0) for have, pair in zip(seen, pairs, strict=True)]
    rows, yeses = int(sum(have.sum() for have in seen)), int(sum(table.sum() for table in said))
    shift = signal_detection.shift_to_yes_count(margins, yeses)
    everything = np.concatenate([table[have] for table, have in zip(margins, seen, strict=True)])
    density = signal_detection.density_at(everything, -shift)
    if density <= 0 or not all(have.any(axis=0).all() for have in seen):
        return None
    above = [np.where(have, table > -shift, 0.0) for table, have in zip(margins, seen, strict=True)]
    drift: Floats = sum((a - b).sum(axis=1) for a, b in zip(said, above, strict=True)) * (len(margins[0]) / rows)
    first = [signal_detection.at_threshold(table, -shift, drift, density) for table in margins]
    second = [
        evenness.of_means(np.where(have, pair[1].correct, np.nan)) for have, pair in zip(seen, pairs, strict=True)
    ]
    balanced = None
    if no is not None and second[0] is not None and second[1] is not None:
        balanced = _level_change(
            (first[0].mean(axis=1) + 1 - first[1].mean(axis=1)) / 2,
            (second[0].mean(axis=1) + second[1].mean(axis=1)) / 2,
        )
    return ThresholdMatched(shift, evenness.compare(first[0], second[0]), balanced)


def _level_change(first: Floats, second: Floats) -> Change | None:
    """The means of two vectors over items, and their paired difference with a t interval."""
    n = len(first)
    single = max(first.std(ddof=1), second.std(ddof=1)) if n > 1 else 0.0
    if single == 0:
        return None
    error = max((second - first).std(ddof=1) / np.sqrt(n), single / n)
    found = st.intervals.about(float((second - first).mean()), float(error), n - 1, n)
    return Change(float(first.mean()), float(second.mean()), *found[:3])
