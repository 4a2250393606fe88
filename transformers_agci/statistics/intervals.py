"""Intervals: proportions, means over items, means over seeds and items. None of them has the width zero.

A table is an array [items, cells] of floats: one value per item and cell, NaN where a row is missing. The rows of one
item share their images and caption, so they are not independent: what counts is the number of items.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformers_agci.statistics.distributions import normal_quantiles, t_quantiles

Floats = NDArray[np.floating[Any]]
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate with the bounds of its 95 % interval; `n` is the number of rows behind it.

    The bounds are NaN where the data allow an estimate and no interval: a single item, or values that are all equal.
    """

    estimate: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return value < self.low or value > self.high

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit."""
        return Interval(factor * self.estimate, factor * self.low, factor * self.high, self.n)

    def within(self, least: float, most: float) -> "Interval":
        """The same with bounds no further than a measure can go; NaN stays NaN."""
        low, high = (float(np.clip(bound, least, most)) for bound in (self.low, self.high))
        return self._replace(low=low, high=high)


NO_DATA = Interval(np.nan, np.nan, np.nan, 0)


class Measured(NamedTuple):
    """A measure over all rows, and per cell."""

    overall: Interval
    cells: list[Interval]


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Two-sided: 1.96 for 0.95."""
    return float(normal_quantiles(0.5 + confidence / 2))


def t_quantile(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return float(t_quantiles(0.5 + CONFIDENCE / 2, freedom))


def about(estimate: float, error: float, freedom: float, n: int) -> Interval:
    """estimate -+ t * standard error; without bounds where the error is zero or unknown."""
    half = t_quantile(freedom) * error if freedom > 0 and error > 0 else np.nan
    return Interval(float(estimate), float(estimate - half), float(estimate + half), n)


def deviate(value: Interval, point: float, freedom: float) -> float:
    """How many standard errors the middle of a 95 % interval lies above `point`; NaN without bounds.

    `freedom`: of the t quantile that made the interval, infinite for a normal one.
    """
    half = (value.high - value.low) / 2
    if not half > 0 or freedom < 1:
        return float("nan")
    return float(((value.high + value.low) / 2 - point) * t_quantile(freedom) / half)


def wilson(hits: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion; `n` may be an effective sample size (not a whole number).

    >>> tuple(round(x, 3) for x in wilson(9, 10))
    (0.9, 0.596, 0.982, 10)
    """
    if n <= 0:
        return NO_DATA
    z = normal_quantile(confidence)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = min(p, float(centre - half)), max(p, float(centre + half))  # p at 0 and 1 is a bound, up to rounding
    return Interval(float(p), max(0.0, low), min(1.0, high), int(n))


def cell_proportions(table: Floats) -> list[Interval]:
    """Per cell of a table of zeros and ones: the share of ones with Wilson's interval (one row per item)."""
    present = ~np.isnan(table)
    return [wilson(float(h), float(n)) for h, n in zip(np.nansum(table, axis=0), present.sum(axis=0), strict=True)]


def effective_floor(sizes: NDArray[Any]) -> float:
    """The number of independent rows in clusters of these sizes whose rows are all alike: (sum m)^2 / sum m^2.

    It is the number of items where all have equally many rows, and less otherwise.
    """
    total = float((sizes.astype(float) ** 2).sum())
    return float(sizes.sum()) ** 2 / total if total else 0.0


def effective_size(table: Floats, mean: float, row_variance: float) -> float:
    """How many independent rows would know the mean of a table as well as its items do.

    Row variance / variance of the mean between items, kept between `effective_floor` and `_size_by_correlation`: the
    variance between items alone is too small where all wrong rows happen to be in items with few rows.
    """
    sizes = (~np.isnan(table)).sum(axis=1)
    items, floor = int((sizes > 0).sum()), effective_floor(sizes)
    if row_variance <= 0 or items < 2:
        return floor
    most = _size_by_correlation(table)
    residuals = np.nansum(table, axis=1) - mean * sizes
    variance = items / (items - 1) * float((residuals**2).sum()) / float(sizes.sum()) ** 2
    return min(most, max(floor, row_variance / variance)) if variance > 0 else most


def _size_by_correlation(table: Floats) -> float:
    """(sum m)^2 / sum m (1 + (m - 1) r) for items of m rows with the correlation r of an item's rows.

    r = 1 - variance within items / variance of all rows, both of the items with several rows; where these do not vary
    nothing is known about it, and r is 1.
    """
    sizes = (~np.isnan(table)).sum(axis=1).astype(float)
    several = table[sizes > 1]
    correlation = 1.0
    if len(several) and np.nanvar(several) > 0:
        within = np.nansum((several - np.nanmean(several, axis=1, keepdims=True)) ** 2)
        freedom = float((sizes[sizes > 1] - 1).sum())
        correlation = min(1.0, max(0.0, 1 - float(within) / freedom / float(np.nanvar(several))))
    return float(sizes.sum()) ** 2 / float((sizes * (1 + (sizes - 1) * correlation)).sum())


def clustered_proportion(table: Floats) -> Interval:
    """The share of ones over all rows of a table, rows of an item being dependent.

    Wilson's interval with the effective sample size; it has a width at 0 % and 100 % too, where a bootstrap has none.
    """
    rows = int((~np.isnan(table)).sum())
    if rows == 0:
        return NO_DATA
    p = float(np.nansum(table) / rows)
    effective = effective_size(table, p, p * (1 - p))
    return wilson(p * effective, effective)._replace(estimate=p, n=rows)


def proportion_by_error(p: float, error: float, least: float, most: float, n: int) -> Interval:
    """Wilson's interval of a proportion that is known with a standard error, [0, 1]; `n` is the number of rows.

    The effective sample size is p (1 - p) / error^2, at most `most`; it is `least` where there is no error to go by.
    """
    p = min(1.0, max(0.0, p))
    effective = p * (1 - p) / error**2 if error > 0 else 0.0
    effective = min(effective, most) or least
    return wilson(p * effective, effective)._replace(estimate=p, n=n)


def items_with_rows(*tables: Floats) -> int:
    """The number of items that have a row; with several tables that of the one that has fewest.

    Degrees of freedom follow from it: Yes rows and No rows may stand on different items, and an item without a row of
    an answer says nothing about it.
    """
    return min(int((~np.isnan(table)).any(axis=1).sum()) for table in tables)


def cell_means(table: Floats) -> Floats:
    """[items, cells] -> [cells]; NaN for a cell without rows."""
    with np.errstate(invalid="ignore"):
        means: Floats = np.nansum(table, axis=0) / (~np.isnan(table)).sum(axis=0)
    return means


def mean_over_items(table: Floats) -> Measured:
    """The mean over all rows and per cell of a table of any numbers, with t intervals over items.

    Where items are few, a bootstrap's intervals are too short (89 % instead of 95 % at ten items); t's are not.
    """
    present = ~np.isnan(table)
    rows, sizes = int(present.sum()), present.sum(axis=1)
    items = int((sizes > 0).sum())
    if rows == 0:
        return Measured(NO_DATA, [NO_DATA] * table.shape[1])
    mean = float(np.nansum(table) / rows)
    residuals = np.nansum(table, axis=1) - mean * sizes
    error = np.sqrt(items / max(items - 1, 1) * float((residuals**2).sum())) / rows
    return Measured(about(mean, _unless_zero(error, mean), items - 1, rows), [_mean(cell) for cell in table.T])


def _mean(values: Floats) -> Interval:
    present = values[~np.isnan(values)]
    n = len(present)
    if n < 2:
        return Interval(float(present[0]), np.nan, np.nan, 1) if n else NO_DATA
    mean = float(present.mean())
    return about(mean, _unless_zero(float(present.std(ddof=1)) / np.sqrt(n), mean), n - 1, n)


def _unless_zero(error: float, scale: float) -> float:
    """The standard error, or 0 where it is the rounding of equal numbers."""
    return 0.0 if error <= 1e-12 * abs(scale) else error


def mean_over_seeds_and_items(values: Floats) -> Interval:
    """The mean of values [seeds, items] with a t interval for new seeds and new items (both are random).

    Variance of the mean = that of the seeds' means + that of the items' means - what both contain of the residual
    (at least the larger of the two); degrees of freedom by Satterthwaite. With one seed, items alone are random.
    """
    seeds, items = values.shape
    mean = float(values.mean())
    by_item = float(values.mean(axis=0).var(ddof=1)) / items if items > 1 else 0.0
    if seeds == 1:
        return about(mean, _unless_zero(np.sqrt(by_item), mean), items - 1, values.size)
    by_seed = float(values.mean(axis=1).var(ddof=1)) / seeds
    if items == 1:
        return about(mean, _unless_zero(np.sqrt(by_seed), mean), seeds - 1, values.size)
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + mean
    shared = float((residual**2).sum()) / ((seeds - 1) * (items - 1)) / values.size
    variance = max(by_seed + by_item - shared, by_seed, by_item)
    freedom = by_seed**2 / (seeds - 1) + by_item**2 / (items - 1)
    return about(mean, _unless_zero(np.sqrt(variance), mean), variance**2 / freedom if freedom else 0, values.size)
