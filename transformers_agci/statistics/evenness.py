"""How uneven a measure is over the cells of the grid, estimated without bias, and whether two results differ in it.

The unevenness of a measure with the value mu_c in cell c is V = mean over c of (mu_c - mean of mu)^2. The variance of
estimated values is larger than V, because noise adds to it; and by how much depends on the accuracy, so that a result
whose accuracy rises looks more even with no repair at all. Here V comes from products of different items only:

    x_i = y_i - mean over the cells of y_i        V = (|sum_i x_i|^2 - sum_i |x_i|^2) / (C n (n - 1))

It has no bias whatever the dependence between the cells of an item, and may therefore be negative. y_i [cells] is what
item i contributes; for a measure that is no mean (AUC, d', margins in units of an sd) it is the item's
jackknife pseudo-value. Two results of the same items are compared by the delete-one-item jackknife of V with a t
quantile. An item is one base image with its Yes rows and its No rows. Tables are [items, cells], NaN: no row.

What a position does to a result is read from the margins (Yes logit - No logit), because a moved threshold changes
every accuracy but no margin. Two units are used, and a change must hold in both: the margins' sd within a cell and an
answer (MARGIN_UNIT), and the distance between Yes and No rows (the logit itself where there are no No rows). Noise
added to all margins makes the first unit larger, a model that sees less shrinks the second: neither is a repair.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformers_agci.statistics.distributions import normal_quantiles, t_quantiles
from transformers_agci.statistics.intervals import Floats, t_quantile
from transformers_agci.statistics.signal_detection import auc_without_each

Bools = NDArray[np.bool_]
Verdict = Literal["more even", "less even", "no difference shown", "cannot tell"]

MARGIN_UNIT = "sd within a cell"
MARGIN_UNIT_NOTE = "sd within a cell: of margins of one cell and answer, pooled over the cells and over Yes and No rows"

MIN_ITEMS = 10  # with fewer the jackknife's interval cannot be relied on
ROUNDING = 1e-12  # a standard error this small beside the mean square of what it was computed from is rounding
EDGE_SHARE, EDGE_ROWS = 0.05, 5  # margins equal to the outermost one: from either on they are looked at as cut off
MIN_COUNT = 3  # right and wrong answers that a cell needs before its d' is more than its correction
MIN_CELLS, MIN_CELL_SHARE = 3, 0.5  # cells with a d' that are needed for its unevenness


Shape = Literal["normal", "t(3)", "uniform"]
QUANTILES: dict[Shape, Callable[[Floats], Floats]] = {
    "normal": normal_quantiles,
    "t(3)": lambda share: t_quantiles(share, 3),
    "uniform": lambda share: share,
}


class Change(NamedTuple):
    """A measure of two results on the same items, and second - first with its 95 % interval.

    For evenness `first` and `second` are unbiased variances over the cells: squared units, below zero by chance.
    """

    first: float
    second: float
    estimate: float
    low: float
    high: float

    @property
    def direction(self) -> int:
        """1 or -1 where the interval lies above or below zero, otherwise 0."""
        return int(self.low > 0) - int(self.high < 0)


class Level(NamedTuple):
    """The unevenness V of one result with its 95 % interval."""

    estimate: float
    low: float
    high: float
    n: int  # items


def unevenness(contributions: Floats) -> float:
    """V of contributions [items, cells] without missing values; NaN with fewer than two items.

    >>> unevenness(np.tile([0.0, 1.0], (5, 1)))
    0.25
    """
    n, cells = contributions.shape
    if n < 2:
        return float("nan")
    centred = contributions - contributions.mean(axis=1, keepdims=True)
    total = centred.sum(axis=0)
    return float(((total**2).sum() - (centred**2).sum()) / (cells * n * (n - 1)))


def leave_one_out(contributions: Floats) -> Floats:
    """[items]: V without each item in turn, in closed form; needs three items."""
    n, cells = contributions.shape
    centred = contributions - contributions.mean(axis=1, keepdims=True)
    total, own = centred.sum(axis=0), (centred**2).sum(axis=1)
    square = (total**2).sum() - 2 * centred @ total + own
    left: Floats = (square - (own.sum() - own)) / (cells * (n - 1) * (n - 2))
    return left


def contributions_to_unevenness(table: Floats) -> Floats:
    """[items]: jackknife pseudo-values of V, whose mean is V and whose spread is what items make of it.

    They carry V into an interval over models and items (`intervals.mean_over_seeds_and_items`).
    """
    n = len(table)
    if n < 3:
        return np.full(n, unevenness(table))
    found: Floats = n * unevenness(table) - (n - 1) * leave_one_out(table)
    found += unevenness(table) - found.mean()
    return found


def level(contributions: Floats | None, items: int | None = None) -> Level | None:
    """V of one result with its jackknife interval; None where there are too few items or nothing varies.

    `items` have rows, where that is not true of all that contribute (`intervals.items_with_rows`).
    """
    n = _items(contributions, items)
    if contributions is None or n < 3:
        return None
    error = _error_of_unevenness(contributions)
    if not error > 0:
        return None
    estimate, half = unevenness(contributions), t_quantile(n - 1) * error
    return Level(estimate, estimate - half, estimate + half, n)


def compare(
    first: Floats | None, second: Floats | None, *, items: int | None = None, noisy: bool = False
) -> Change | None:
    """V(second) - V(first) for the same items; None where there are fewer than three or neither V varies.

    `items` have rows, where that is not true of all that contribute (`intervals.items_with_rows`). `noisy`: the cells'
    values are mostly noise, as d' is, so that what the jackknife counts twice matters and is taken off (`_twice`).

    Two results that differ by nothing but a constant have equal deletions and a standard error of zero. The error is
    therefore at least what a single item that differs as items usually do would give: sd / n.
    """
    n = _items(first, items)
    if first is None or second is None or n < 3:
        return None
    values = unevenness(first), unevenness(second)
    deletions = leave_one_out(first), leave_one_out(second)
    single = max(_error_of_unevenness(of_one) for of_one in (first, second))
    if not single > 0:
        return None
    error = _standard_error(deletions[1] - deletions[0])
    if noisy:
        error = math.sqrt(max(error**2 - _twice(first, second), error**2 / 2))
    error = max(error, single / np.sqrt(n))
    estimate, half = values[1] - values[0], float(t_quantile(n - 1) * error)
    return Change(*values, estimate, estimate - half, estimate + half)


def _twice(first: Floats, second: Floats) -> float:
    """What the jackknife's variance of V(second) - V(first) holds twice, and so once too often (Efron and Stein 1981).

    V is a mean of products of two items, x_i . x_j / C. Of their variance the jackknife has right what either item does
    by itself, and counts double what only the two together do: 2 E(d^2) / (C^2 n (n - 1)), d = e_i . e_j of the second
    less that of the first result, e an item's x less the mean of all. E(d^2) is the trace of (S J)^2: S the covariance
    of both results' e side by side, J -1 for those of the first and 1 for those of the second.
    """
    n, cells = first.shape
    centred = [x - x.mean(axis=1, keepdims=True) for x in (first, second)]
    covariance = np.cov(np.hstack(centred).T) * np.repeat([-1.0, 1.0], cells)
    return float(2 * np.trace(covariance @ covariance) / (cells**2 * n * (n - 1)))


def _items(contributions: Floats | None, items: int | None) -> int:
    contributing = 0 if contributions is None else len(contributions)
    return contributing if items is None else min(items, contributing)


def _error_of_unevenness(contributions: Floats) -> float:
    """The jackknife's standard error of V; 0 where V varies by the rounding of its terms only, or is not finite."""
    error = _standard_error(leave_one_out(contributions))
    return error if error > ROUNDING * float((contributions**2).mean()) else 0.0


def _standard_error(deletions: Floats) -> float:
    n = len(deletions)
    return float(np.sqrt((n - 1) / n * ((deletions - deletions.mean()) ** 2).sum()))


def pseudo_values(values: Floats, deleted: Floats) -> Floats | None:
    """n * value - (n - 1) * value without item i: [cells] and [items, cells] -> [items, cells]; None if not finite."""
    n = len(deleted)
    found: Floats = n * values - (n - 1) * deleted
    return found if np.isfinite(found).all() else None


class _Sums:
    """Sums of a table per cell, and the same without each item in turn."""

    def __init__(self, table: Floats) -> None:
        self.present = ~np.isnan(table)
        self.values = np.where(self.present, table, 0.0)
        self.counts, self.totals = self.present.sum(axis=0), self.values.sum(axis=0)
        self.deleted_counts = self.counts - self.present
        with np.errstate(invalid="ignore", divide="ignore"):
            self.means: Floats = self.totals / self.counts
            self.deleted_means: Floats = (self.totals - self.values) / self.deleted_counts

    def squares(self) -> tuple[float, Floats]:
        """Squared distances from the cell means, over all cells; and without each item."""
        residual = np.where(self.present, self.values - self.means, 0.0)
        whole = float((residual**2).sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            own = residual**2 * np.where(self.deleted_counts > 0, self.counts / self.deleted_counts, 1.0)
        return whole, whole - own.sum(axis=1)

    def freedom(self) -> tuple[int, Floats]:
        """Degrees of freedom of `squares`; and without each item."""
        whole = int(np.maximum(self.counts - 1, 0).sum())
        return whole, np.maximum(self.deleted_counts - 1, 0).sum(axis=1)


def of_means(table: Floats) -> Floats | None:
    """What each item contributes to the cell means of a table; None where a cell has fewer than two rows."""
    sums = _Sums(table)
    return pseudo_values(sums.means, sums.deleted_means) if (sums.counts >= 2).all() else None


def of_standardized_margins(margins: Floats, others: Floats | None = None) -> Floats | None:
    """The margins in MARGIN_UNIT: their sd within a cell and an answer, pooled over the cells and both answers.

    `others` are the margins of the other answer. Neither a shift nor a change of scale of all margins alters these.
    """
    sums = [_Sums(table) for table in (margins, others) if table is not None]
    if not (sums[0].counts >= 2).all():
        return None
    squares, freedom = [s.squares() for s in sums], [s.freedom() for s in sums]
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = np.sqrt(sum(s[0] for s in squares) / sum(f[0] for f in freedom))
        deleted = np.sqrt(sum(s[1] for s in squares) / sum(f[1] for f in freedom))
        if not whole > 1e-12 * (1 + np.abs(sums[0].means).max()):
            return None
        return pseudo_values(sums[0].means / whole, sums[0].deleted_means / deleted[:, None])


def are_cut_off(margins: Floats) -> bool:
    """Whether margins end at a bound, or come in steps as large as their spread: a shift then moves them unevenly.

    At a bound more rows are equal than just inside of it (three times as many here).
    """
    counts = np.unique(margins[np.isfinite(margins)], return_counts=True)[1]
    if len(counts) < 2:
        return len(counts) == 1
    ends = ((counts[0], counts[1]), (counts[-1], counts[-2]))
    return any(end > EDGE_SHARE * counts.sum() or end > max(EDGE_ROWS, 3 * inside) for end, inside in ends)


def of_margins_by_distance(yes: Floats, no: Floats, answer: Literal["yes", "no"] = "yes") -> Floats | None:
    """The margins of one answer in units of the distance between the mean Yes row and the mean No row."""
    sums = _Sums(yes), _Sums(no)
    if not all((s.counts >= 2).all() for s in sums):
        return None
    whole = sums[0].means.mean() - sums[1].means.mean()
    deleted = sums[0].deleted_means.mean(axis=1) - sums[1].deleted_means.mean(axis=1)
    error = _standard_error(deleted)
    if not whole > 3 * error:  # a model that does not tell Yes rows from No rows has no such unit
        return None
    own = sums[0] if answer == "yes" else sums[1]
    return pseudo_values(own.means / whole, own.deleted_means / deleted[:, None])


def cells_with_both(table: Floats) -> Bools:
    """[cells]: which have MIN_COUNT ones and MIN_COUNT zeros."""
    ones = np.nansum(table, axis=0)
    found: Bools = np.minimum(ones, np.isfinite(table).sum(axis=0) - ones) >= MIN_COUNT
    return found


def cells_with_d_prime(said_yes: Floats, said_yes_wrongly: Floats) -> Bools:
    """[cells]: which have MIN_COUNT right and wrong answers of either kind.

    In the others d' is mostly its correction, which makes cells alike.
    """
    return cells_with_both(said_yes) & cells_with_both(said_yes_wrongly)


def corrected_rates(table: Floats) -> tuple[Floats, Floats]:
    """Rates of ones per cell [C], log-linear correction; and without each item [items, C]."""
    present, ones = np.isfinite(table), np.nan_to_num(table)
    totals, counts = ones.sum(axis=0), present.sum(axis=0)
    return (totals + 0.5) / (counts + 1), (totals - ones + 0.5) / (counts - present + 1)


def of_d_prime(
    said_yes: Floats, said_yes_wrongly: Floats, shape: Shape = "normal", relative: bool = False
) -> Floats | None:
    """Per-cell d' from the Yes answers to Yes rows and to No rows (tables of zeros and ones), log-linear correction.

    None where a cell is none of `cells_with_d_prime`. d' stays the same under a moved threshold only if margins are
    normal; `shape` measures it as if they had the heavy tails of Student's t with three degrees of freedom, or none.
    `relative` is d' as a multiple of its mean over the cells, which noise added to all margins does not change.
    """
    if not cells_with_d_prime(said_yes, said_yes_wrongly).all():
        return None
    quantile = QUANTILES[shape]
    hits, alarms = corrected_rates(said_yes), corrected_rates(said_yes_wrongly)
    whole, deleted = (quantile(of_yes) - quantile(of_no) for of_yes, of_no in zip(hits, alarms, strict=True))
    if relative:
        middle, middles = whole.mean(), deleted.mean(axis=1, keepdims=True)
        if not middle > 3 * _standard_error(middles.ravel()):
            return None
        whole, deleted = whole / middle, deleted / middles
    return pseudo_values(whole, deleted)


def of_auc(yes: Floats, no: Floats) -> Floats | None:
    """Per-cell AUC of the margins: the share of pairs (Yes row, No row of the cell) in the right order, ties half."""
    columns = [auc_without_each(y[:, None], n[:, None]) for y, n in zip(yes.T, no.T, strict=True)]
    if any(column is None for column in columns):
        return None
    values, deleted = zip(*(column for column in columns if column is not None), strict=True)
    return pseudo_values(np.array(values), np.stack(deleted, axis=1))


def verdict(decisive: Change | None, confirming: Change | None, items: int) -> Verdict:
    """What two measures of evenness allow to be said: a change counts where both show it, in the same direction.

    Where only one of them shows a change, what changed may be the unit: that is "cannot tell".
    """
    if decisive is None or confirming is None or items < MIN_ITEMS:
        return "cannot tell"
    if decisive.direction != confirming.direction:
        return "cannot tell"
    if decisive.direction == 0:
        return "no difference shown"
    return "more even" if decisive.direction < 0 else "less even"


def signed_root(variance: float) -> float:
    """The standard deviation over the cells that belongs to V; negative where V is, by chance, below zero.

    >>> signed_root(-0.04)
    -0.2
    """
    return math.copysign(math.sqrt(abs(variance)), variance)
