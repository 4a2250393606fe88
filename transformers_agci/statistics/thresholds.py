"""Results at a threshold of their margins that is set to a share of the rows, or to be the best.

Tables are [items, cells], NaN: no row. Items, with their Yes and their No rows, are what is independent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformers_agci.statistics.intervals import (
    Floats,
    Interval,
    Measured,
    effective_floor,
    effective_size,
    proportion_by_error,
    wilson,
)

NO_RATE = 0.9  # share of No rows answered rightly at the threshold where results are compared


class Threshold(NamedTuple):
    """A threshold on the margins. Rows on it count as above it with the weight `part`, 0..1.

    Where many margins are equal, no threshold gives a wanted share of rows above it; one with a part of the rows that
    lie on it does. That is the point on the straight line between two points of the ROC.
    """

    value: float
    part: float = 0.0

    def above(self, table: Floats) -> Floats:
        """1 for margins above it, `part` on it, 0 below it; NaN stays NaN."""
        found: Floats = (table > self.value) + self.part * (table == self.value)
        return np.where(np.isnan(table), np.nan, found)


def threshold_for_count(margins: Sequence[Floats], yeses: float) -> Threshold:
    """The threshold that `yeses` of all margins lie above, ties counted in part."""
    values = np.sort(np.concatenate([table[np.isfinite(table)] for table in margins]))[::-1]
    first_out = int(yeses)
    if yeses <= 0:
        return Threshold(float(values[0] + 1))
    if yeses >= len(values):
        return Threshold(float(values[-1] - 1))
    if first_out == yeses and values[first_out - 1] > values[first_out]:
        return Threshold(float((values[first_out - 1] + values[first_out]) / 2))
    value = values[first_out]
    return Threshold(float(value), float((yeses - (values > value).sum()) / (values == value).sum()))


def at_threshold(table: Floats, threshold: Threshold, drift: Floats, others: Sequence[Floats]) -> Floats:
    """What each item contributes to the share of margins above a threshold that is itself estimated, [items, cells].

    The threshold is set so that some share of the rows of `others` equals a target; `drift` [items] is what the item
    adds to (target - share). A rise of the target moves the threshold, and so the share above it in every cell
    (`_slopes`).
    """
    present = np.isfinite(table)
    above = threshold.above(table)
    rates, counts = np.nanmean(above, axis=0), present.sum(axis=0)
    own = np.where(present, np.nan_to_num(above) - rates, 0.0) * (len(table) / counts)
    found: Floats = rates + own + np.outer(drift, _slopes(table, threshold, others))
    return found


def _slopes(table: Floats, threshold: Threshold, others: Sequence[Floats]) -> Floats:
    """[cells]: by how much the share of a cell above the threshold rises for a rise of that of all rows of `others`.

    Between the thresholds at the ends of Wilson's interval of the latter: a density at the threshold would be near
    zero, and what is divided by it anything, where no margin lies near it.
    """
    above = np.concatenate([threshold.above(other) for other in others], axis=1)
    rows, share = int(np.isfinite(above).sum()), float(np.nanmean(above))
    effective = effective_size(above, share, share * (1 - share))
    ends = wilson(share * effective, effective)
    fewer, more = (threshold_for_count(others, bound * rows) for bound in (ends.low, ends.high))
    found: Floats = np.nanmean(more.above(table) - fewer.above(table), axis=0) / (ends.high - ends.low)
    return found


class AtThreshold(NamedTuple):
    """A threshold on the margins, and the share of Yes rows above it."""

    threshold: Threshold
    accuracy: Measured


def yes_accuracy_at_no_rate(yes: Floats, no: Floats, no_rate: float = NO_RATE) -> AtThreshold | None:
    """The accuracy on Yes rows at the threshold at which `no_rate` of the No rows are answered rightly, ties in part.

    Wilson's intervals, with an error that counts what is not known of the threshold (`at_threshold`). None where the
    margins do not vary or a cell has no rows.
    """
    values = no[np.isfinite(no)]
    if len(values) < 2 or np.ptp(values) == 0 or not np.isfinite(yes).any(axis=0).all():
        return None
    threshold = threshold_for_count([no], round((1 - no_rate) * len(values), 9))
    said = threshold.above(no)
    drift = -np.nan_to_num(said - np.nanmean(said)).sum(axis=1) * (len(no) / len(values))
    contributions = at_threshold(yes, threshold, drift, [no])
    above = threshold.above(yes)
    cells = [_share_above(a[:, None], c) for a, c in zip(above.T, contributions.T, strict=True)]
    rows = np.isfinite(above).sum(axis=0)
    return AtThreshold(threshold, Measured(_share_above(above, contributions @ rows / rows.sum()), cells))


def _share_above(above: Floats, contributions: Floats) -> Interval:
    """The share of ones in a table, from what each item contributes to it [items]; as sure as the table at most."""
    rows, items = int(np.isfinite(above).sum()), len(contributions)
    share = float(np.nanmean(above))
    error = float(contributions.std(ddof=1)) / items**0.5 if items > 1 else 0.0
    least = effective_floor(np.isfinite(above).sum(axis=1))
    most = effective_size(above, share, share * (1 - share))
    return proportion_by_error(share, error, least, most, rows)


def best_threshold(yes: Floats, no: Floats) -> float | None:
    """The threshold on the margins with the largest balanced accuracy on these very rows; None without margins."""
    yeses, noes = np.sort(yes[np.isfinite(yes)]), np.sort(no[np.isfinite(no)])
    if not len(yeses) or not len(noes):
        return None
    values = np.unique(np.concatenate([yeses, noes]))
    between = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2])
    hits = 1 - np.searchsorted(yeses, between, side="right") / len(yeses)
    rejections = np.searchsorted(noes, between, side="right") / len(noes)
    return float(between[np.argmax(hits + rejections)])
