"""What the margins of one result say as probabilities: calibration with its reliability curve, and the ROC.

sigma(margin) is the probability of Yes between the two words. A bin of the curve holds the rows, Yes and No, whose
probability lies in it; it is calibrated where the share of them that should be answered Yes is that probability.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from transformers_agci import statistics as st
from transformers_agci.experiments.position.results import Tables
from transformers_agci.statistics import Interval, signal_detection

BINS = 10  # of equal width, between probabilities of 0 and 1
MOST_UNSURE = 0.4  # width of the interval of a bin's share: surer bins are joined with none
ROC_POINTS = 200  # of a curve: more cannot be seen


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose probability of Yes lies in one bin: its mean, and the share of them whose right answer is Yes."""

    probability: float
    share: Interval


@dataclass(frozen=True)
class Calibration:
    """sigma(margin) as the probability of Yes: Brier score, and mean probability of the likelier word - accuracy.

    `cells` are those gaps per cell, over Yes and No rows together: above zero the model is surer than it is right.
    `curve` is the reliability curve over all rows, by rising probability, of bins that hold enough rows.
    """

    brier: Interval
    gap: Interval
    cells: list[Interval]
    curve: list[ReliabilityBin]


@dataclass(frozen=True)
class Roc:
    """Shares of No rows and of Yes rows with a Yes, from (0, 0) to (1, 1), at thresholds of the margin."""

    false_alarms: list[float]
    hits: list[float]


def calibration(yes: Tables | None, no: Tables | None) -> Calibration | None:
    """None where not both answers have margins."""
    if not (yes and no and yes.has_margins and no.has_margins):
        return None
    sure = [special.expit(yes.margin), special.expit(-no.margin)]  # probability of the right answer
    brier = np.concatenate([(1 - p) ** 2 for p in sure], axis=1)
    gaps = [
        np.where(np.isnan(p), np.nan, np.maximum(p, 1 - p) - t.correct) for p, t in zip(sure, (yes, no), strict=True)
    ]
    cells = [st.mean_over_items(np.stack([a, b], axis=1)).overall for a, b in zip(gaps[0].T, gaps[1].T, strict=True)]
    overall = st.mean_over_items(np.concatenate(gaps, axis=1)).overall
    return Calibration(st.mean_over_items(brier).overall.within(0, 1), overall, cells, _curve(yes, no))


def _curve(yes: Tables, no: Tables) -> list[ReliabilityBin]:
    """The bins from the lowest probability on, each joined with the next ones until its share is known to MOST_UNSURE.

    What is left at the top belongs to the last bin. Few items otherwise make a curve that goes up and down by chance.
    """
    said = special.expit(np.concatenate([yes.margin, no.margin], axis=1))  # [items, 2 cells]
    truth = np.repeat([1.0, 0.0], yes.margin.shape[1])
    with np.errstate(invalid="ignore"):
        bins = np.minimum(np.floor(said * BINS), BINS - 1)  # NaN stays NaN and is in none

    def joined(first: int, last: int) -> ReliabilityBin:
        inside = (bins >= first) & (bins <= last)
        share = st.clustered_proportion(np.where(inside, truth, np.nan))
        return ReliabilityBin(float(said[inside].mean()), share)

    found: list[ReliabilityBin] = []
    start = started = 0  # of the bin to come, and of the last one
    for end in range(BINS):
        if not ((bins >= start) & (bins <= end)).any():
            continue
        whole = joined(start, end)
        if whole.share.high - whole.share.low <= MOST_UNSURE:
            found.append(whole)
            started, start = start, end + 1
    if (bins >= start).any():
        found[-1:] = [joined(started, BINS - 1)]
    return found


def roc_curve(yes: Tables | None, no: Tables | None) -> Roc | None:
    """The ROC of the margins over all rows, at most ROC_POINTS of it; None where not both answers have margins."""
    if not (yes and no and yes.has_margins and no.has_margins):
        return None
    false_alarms, hits = signal_detection.roc(yes.margin, no.margin)
    kept = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), ROC_POINTS)).round().astype(int))
    return Roc([float(x) for x in false_alarms[kept]], [float(y) for y in hits[kept]])
