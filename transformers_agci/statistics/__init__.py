"""How far a result can be trusted: intervals, the null of "no position bias", paired comparisons.

A table is an array [items, cells] of floats: one value per item and cell, NaN where a row is missing. The rows of
one item share their images and caption, so they are not independent: items are what is resampled, and chance is what
remains when the values of an item change places among its cells. Every random draw takes a seed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating]
CONFIDENCE = 0.95
CHUNK_VALUES = 4_000_000  # random numbers held at a time


class Interval(NamedTuple):
    """An estimate with the bounds of its 95 % interval; `n` is the number of rows behind it."""

    estimate: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return value < self.low or value > self.high


NO_DATA = Interval(np.nan, np.nan, np.nan, 0)


def wilson(hits: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion; `n` may be an effective sample size (not a whole number).

    >>> tuple(round(x, 3) for x in wilson(9, 10))
    (0.9, 0.596, 0.982, 10)
    """
    if n <= 0:
        return NO_DATA
    z = stats.norm.ppf(0.5 + confidence / 2)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Interval(float(p), max(0.0, float(centre - half)), min(1.0, float(centre + half)), int(n))


def cell_proportions(table: Floats) -> list[Interval]:
    """Per cell of a table of zeros and ones: the share of ones with Wilson's interval (one row per item)."""
    present = ~np.isnan(table)
    return [wilson(float(h), float(n)) for h, n in zip(np.nansum(table, axis=0), present.sum(axis=0), strict=True)]


def clustered_proportion(table: Floats) -> Interval:
    """The share of ones over all rows of a table, rows of an item being dependent.

    Wilson's interval with the effective sample size p(1-p) / (between-item variance of the share); it stays between
    the number of items and the number of rows. It has a width at 0 % and 100 % too, where a bootstrap has none.
    """
    present = ~np.isnan(table)
    rows, sizes = int(present.sum()), present.sum(axis=1)
    items = int((sizes > 0).sum())
    if rows == 0:
        return NO_DATA
    p = float(np.nansum(table) / rows)
    effective = float(items)
    if 0 < p < 1 and items > 1:
        residuals = np.nansum(table, axis=1) - p * sizes
        variance = items / (items - 1) * float((residuals**2).sum()) / rows**2
        effective = min(rows, max(items, p * (1 - p) / variance)) if variance > 0 else float(rows)
    return wilson(p * effective, effective)._replace(estimate=p, n=rows)


def cell_means(table: Floats) -> Floats:
    """[items, cells] -> [cells]; NaN for a cell without rows."""
    with np.errstate(invalid="ignore"):
        return np.nansum(table, axis=0) / (~np.isnan(table)).sum(axis=0)


def deviation(means: Floats) -> Floats:
    """Population standard deviation over the cells, the last axis."""
    return np.nanstd(means, axis=-1)


def gap(means: Floats) -> Floats:
    """Largest minus smallest cell, over the last axis."""
    return np.nanmax(means, axis=-1) - np.nanmin(means, axis=-1)


class Spread(NamedTuple):
    """A measure of unevenness beside what chance alone gives: its mean and 95 % point under the null, and p."""

    observed: float
    expected: float
    high: float
    p: float


class SpreadTest(NamedTuple):
    """Both measures of unevenness over the cells."""

    sd: Spread
    gap: Spread


def permutation_null(table: Floats, permutations: int = 2000, seed: int = 0) -> SpreadTest:
    """Test unevenness over the cells against "where the target sits does not matter".

    Under that hypothesis the values of one item are exchangeable among its cells: each permutation shuffles them
    within every item. p = (1 + permutations at least as uneven) / (1 + permutations).
    """
    means = _permuted_cell_means(table, permutations, seed)
    observed = cell_means(table)
    return SpreadTest(*(_spread(measure(observed), measure(means)) for measure in (deviation, gap)))


def _spread(observed: Floats, null: Floats) -> Spread:
    reached = int((null >= observed - 1e-12).sum())
    return Spread(
        float(observed), float(null.mean()), float(np.quantile(null, CONFIDENCE)), (1 + reached) / (1 + len(null))
    )


def _permuted_cell_means(table: Floats, permutations: int, seed: int) -> Floats:
    """[permutations, cells]: the cell means after shuffling each item's values among the cells that it has."""
    rng = np.random.default_rng(seed)
    present = ~np.isnan(table)
    sums = np.tile(np.nansum(table, axis=0), (permutations, 1)).astype(float)
    for mask in np.unique(present, axis=0):
        rows = table[(present == mask).all(axis=1)][:, mask]
        if rows.shape[1] < 2:
            continue
        rows = rows[(rows != rows[:, :1]).any(axis=1)]  # shuffling equal values changes nothing
        columns = np.flatnonzero(mask)
        sums[:, columns] -= rows.sum(axis=0)
        for number in range(permutations):
            sums[number, columns] += rng.permuted(rows, axis=1).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return sums / present.sum(axis=0)


@dataclass(frozen=True)
class Resampled:
    """Bootstrap samples of one table: `sums` and `counts`, both [resamples, cells]."""

    sums: Floats
    counts: Floats

    @property
    def cells(self) -> Floats:
        """[resamples, cells] means; NaN where a sample has no row of a cell."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums / self.counts

    @property
    def overall(self) -> Floats:
        """[resamples] means over all rows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums.sum(axis=1) / self.counts.sum(axis=1)


def bootstrap(tables: Sequence[Floats], resamples: int = 2000, seed: int = 0) -> list[Resampled]:
    """Draw items with replacement, the same items for every table: what is computed from the samples is paired.

    Row i of every table is the same item; an item that a table does not have is a row of NaN.

    >>> a, b = np.eye(3), np.eye(3)
    >>> first, second = bootstrap([a, b])
    >>> bool((first.overall - second.overall == 0).all())
    True
    """
    items = len(tables[0])
    if any(len(table) != items for table in tables):
        raise ValueError(f"tables of one bootstrap must have the same items, but have {[len(t) for t in tables]} rows")
    rng = np.random.default_rng(seed)
    stacked = np.hstack([part for t in tables for part in (np.nan_to_num(t), ~np.isnan(t))]).astype(float)
    drawn = np.empty((resamples, stacked.shape[1]))
    step = max(1, CHUNK_VALUES // max(1, items))
    for start in range(0, resamples, step):
        picks = rng.integers(0, items, size=(min(step, resamples - start), items))
        weights = np.stack([np.bincount(pick, minlength=items) for pick in picks])
        drawn[start : start + step] = weights @ stacked
    edges = np.cumsum([0] + [width for t in tables for width in (t.shape[1], t.shape[1])])
    parts = [drawn[:, a:b] for a, b in itertools.pairwise(edges)]
    return [Resampled(parts[2 * i], parts[2 * i + 1]) for i in range(len(tables))]


def percentile_interval(samples: Floats, estimate: float, n: int) -> Interval:
    """The middle 95 % of bootstrap samples [resamples] around `estimate`."""
    finite = samples[np.isfinite(samples)]
    if n == 0 or finite.size == 0 or not np.isfinite(estimate):
        return NO_DATA
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(estimate), float(low), float(high), n)


class Measured(NamedTuple):
    """A measure over all rows, and per cell."""

    overall: Interval
    cells: list[Interval]


def bootstrap_means(table: Floats, resamples: int = 2000, seed: int = 0) -> Measured:
    """The mean over all rows and per cell of a table, with item-clustered bootstrap intervals."""
    sample = bootstrap([table], resamples, seed)[0]
    present = (~np.isnan(table)).sum(axis=0)
    rows = int(present.sum())
    overall = percentile_interval(sample.overall, float(np.nansum(table) / rows) if rows else np.nan, rows)
    cells = [
        percentile_interval(draws, float(mean), int(n))
        for draws, mean, n in zip(sample.cells.T, cell_means(table), present, strict=True)
    ]
    return Measured(overall, cells)


def paired_difference(first: Floats, second: Floats, resamples: int = 2000, seed: int = 0) -> Measured:
    """second - first over the rows that both tables have, with item-clustered bootstrap intervals."""
    return bootstrap_means(second - first, resamples, seed)


def d_prime(hit_rate: Floats, positives: Floats, false_alarm_rate: Floats, negatives: Floats) -> Floats:
    """Sensitivity z(hit rate) - z(false-alarm rate), with the log-linear correction (Hautus 1995).

    Half a hit and one trial are added to either side, whatever the rates, so that 0 % and 100 % stay finite:
    (hits + 0.5) / (n + 1). Rates are 0..1; `positives` and `negatives` are numbers of trials.

    >>> round(float(d_prime(0.9, 100, 0.1, 100)), 3)
    2.538
    """
    hits = (np.asarray(hit_rate) * positives + 0.5) / (np.asarray(positives) + 1)
    alarms = (np.asarray(false_alarm_rate) * negatives + 0.5) / (np.asarray(negatives) + 1)
    return stats.norm.ppf(hits) - stats.norm.ppf(alarms)


def balanced_accuracy(yes_accuracy: Floats, no_accuracy: Floats) -> Floats:
    """The mean of the two accuracies: 0.5 for a model that always says the same."""
    return (np.asarray(yes_accuracy) + np.asarray(no_accuracy)) / 2


class McNemar(NamedTuple):
    """Rows that were wrong and became right, right and became wrong, and the exact two-sided p."""

    gained: int
    lost: int
    p: float


def mcnemar(first: Floats, second: Floats) -> McNemar:
    """Exact McNemar test of two vectors of zeros and ones over the same independent rows (one cell, not a table)."""
    gained = int(((first == 0) & (second == 1)).sum())
    lost = int(((first == 1) & (second == 0)).sum())
    p = min(1.0, 2 * float(stats.binom.cdf(min(gained, lost), gained + lost, 0.5))) if gained + lost else 1.0
    return McNemar(gained, lost, p)
