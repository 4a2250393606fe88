"""Two results on the same rows: differences with intervals, McNemar's test, Holm's correction, and the bootstrap.

Row i of every table is the same item; an item that a table does not have is a row of NaN.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformers_agci.statistics.distributions import even_binomial_share, t_quantiles
from transformers_agci.statistics.intervals import (
    CONFIDENCE,
    NO_DATA,
    Floats,
    Interval,
    Measured,
    effective_size,
    items_with_rows,
    mean_over_items,
    normal_quantile,
)

CHUNK_VALUES = 4_000_000  # random numbers held at a time
HALVINGS = 40  # of the interval in which a bound lies


def agresti_min(
    gained: float, lost: float, n: float, confidence: float = CONFIDENCE, freedom: float = np.inf
) -> Interval:
    """Difference of two paired proportions, (gained - lost) / n, with the interval of Agresti and Min (2005).

    Half a row is added to each of the four outcomes, so that no interval has the width zero; the estimate is the plain
    difference. `n` may be an effective sample size that `freedom` + 1 items gave: then Student's quantile is taken.

    >>> tuple(round(x, 3) for x in agresti_min(0, 0, 100))
    (0.0, -0.019, 0.019, 100)
    """
    if n <= 0:
        return NO_DATA
    size = n + 2
    centre = (gained - lost) / size
    quantile = (
        float(t_quantiles(0.5 + confidence / 2, freedom)) if np.isfinite(freedom) else normal_quantile(confidence)
    )
    half = quantile * np.sqrt(max((gained + lost + 1) / size - centre**2, 0) / size)
    return Interval((gained - lost) / n, max(-1.0, float(centre - half)), min(1.0, float(centre + half)), int(n))


def paired_difference(first: Floats, second: Floats) -> Measured:
    """second - first of two tables over the rows that both have: t intervals over items."""
    return mean_over_items(second - first)


def proportion_difference(first: Floats, second: Floats) -> Measured:
    """second - first of two tables of zeros and ones over the rows that both have.

    Agresti and Min's interval; over all rows with the effective sample size that the items allow, and t's quantile.
    """
    difference = second - first
    gained, lost = (np.nansum(difference == sign, axis=0).astype(float) for sign in (1, -1))
    present = (~np.isnan(difference)).sum(axis=0)
    cells = [agresti_min(*counts) for counts in zip(gained, lost, present.astype(float), strict=True)]
    rows = int(present.sum())
    if rows == 0:
        return Measured(NO_DATA, cells)
    up, down = float(gained.sum()) / rows, float(lost.sum()) / rows
    effective = effective_size(difference, up - down, up + down - (up - down) ** 2)
    freedom = max(items_with_rows(difference) - 1, 1)
    overall = agresti_min(up * effective, down * effective, effective, freedom=freedom)
    return Measured(overall._replace(estimate=up - down, n=rows), cells)


def score_bounds(gained: Floats, lost: Floats, n: Floats, quantile: float) -> tuple[Floats, Floats]:
    """Bounds of paired differences (gained - lost) / n, vectors, by Tango's score interval (1998); NaN where n is 0.

    All differences that are less than `quantile` standard errors away, the error being that of the likeliest
    probabilities with just this difference. Where few rows changed, and all in one direction, it is as lopsided as the
    truth is, which an interval of equal halves is not: the more so, the surer it is to be.

    >>> [bound.round(3).tolist() for bound in score_bounds(np.array([0, 4]), np.zeros(2), np.full(2, 40), 1.96)]
    [[-0.088, 0.004], [0.088, 0.231]]
    """
    estimate = (gained - lost) / np.where(n > 0, n, np.nan)

    def distance(difference: Floats) -> Floats:
        linear = (2 * n - gained + lost) * difference - gained - lost
        losing = (np.sqrt(np.maximum(linear**2 + 8 * n * lost * difference * (1 - difference), 0)) - linear) / (4 * n)
        variance = np.maximum(n * (2 * losing + difference * (1 - difference)), 1e-300)
        found: Floats = np.abs(gained - lost - n * difference) / np.sqrt(variance)
        return found

    bounds = []
    with np.errstate(invalid="ignore"):
        for end in (-1.0, 1.0):
            inside, outside = estimate, np.full_like(estimate, end)
            for _ in range(HALVINGS):
                middle = (inside + outside) / 2
                near = distance(middle) <= quantile
                inside, outside = np.where(near, middle, inside), np.where(near, outside, middle)
            bounds.append(np.where(np.isnan(estimate), np.nan, outside))
    return bounds[0], bounds[1]


def simultaneous_differences(first: Floats, second: Floats, draws: int = 20_000, seed: int = 0) -> list[Interval]:
    """second - first per cell, with intervals that hold in all cells at once in about 95 % of samples or more (max-t).

    Tango's intervals whose quantile is that of the largest of |Z_1| .. |Z_C|, Z being normal with the correlation of
    the cells' differences between items; between that of one cell and that of C independent cells. None is shorter than
    that of its cell alone (Agresti and Min's).
    """
    difference = second - first
    counts = (~np.isnan(difference)).sum(axis=0).astype(float)
    normal = np.random.default_rng(seed).multivariate_normal(
        np.zeros(len(counts)), _correlation(difference, counts), draws, method="eigh"
    )
    quantile = float(np.quantile(np.abs(normal).max(axis=1), CONFIDENCE))
    gained, lost = (np.nansum(difference == sign, axis=0).astype(float) for sign in (1, -1))
    alone = [agresti_min(*of_cell) for of_cell in zip(gained, lost, counts, strict=True)]
    bounds = zip(*score_bounds(gained, lost, counts, quantile), strict=True)
    return [
        cell._replace(low=min(cell.low, float(low)), high=max(cell.high, float(high))) if cell.n else cell
        for cell, (low, high) in zip(alone, bounds, strict=True)
    ]


def _correlation(difference: Floats, counts: Floats) -> Floats:
    """[cells, cells]: how differences go together over items, less what chance makes of it.

    Where few rows differ, chance alone correlates cells, and correlated cells ask for shorter intervals. So they are
    shrunk by the share that their errors have in their squares (Schaefer and Strimmer 2005). A cell in which nothing
    differs counts as independent.
    """
    centred = np.where(np.isnan(difference), 0.0, difference - np.nansum(difference, axis=0) / np.maximum(counts, 1))
    size = np.sqrt((centred**2).sum(axis=0))
    scale = np.outer(size, size)
    found: Floats = np.where(scale > 0, centred.T @ centred, 0.0) / np.maximum(scale, 1e-300)
    np.fill_diagonal(found, 0.0)
    squares = float((found**2).sum())
    by_chance = float((scale > 0).sum() - (size > 0).sum()) / max(len(difference), 1)
    found *= max(0.0, 1 - by_chance / squares) if squares else 0.0
    np.fill_diagonal(found, 1.0)
    return found


class McNemar(NamedTuple):
    """Rows that were wrong and became right, right and became wrong, and the exact two-sided p."""

    gained: int
    lost: int
    p: float


def mcnemar(first: Floats, second: Floats) -> McNemar:
    """Exact McNemar test of two vectors of zeros and ones over the same independent rows (one cell, not a table)."""
    gained = int(((first == 0) & (second == 1)).sum())
    lost = int(((first == 1) & (second == 0)).sum())
    p = min(1.0, 2 * even_binomial_share(min(gained, lost), gained + lost)) if gained + lost else 1.0
    return McNemar(gained, lost, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order: what is at most .05 holds for the whole family. NaN stays NaN."""
    values = np.array(p_values, dtype=float)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known])]
    steps = values[order] * np.arange(len(order), 0, -1)  # the smallest p counts for all tests, the largest for itself
    values[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in values]


@dataclass(frozen=True)
class Resampled:
    """Bootstrap samples of one table: `sums` and `counts`, both [resamples, cells]."""

    sums: Floats
    counts: Floats

    @property
    def cells(self) -> Floats:
        """[resamples, cells] means; NaN where a sample has no row of a cell."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = self.sums / self.counts
        return means

    @property
    def overall(self) -> Floats:
        """[resamples] means over all rows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = self.sums.sum(axis=1) / self.counts.sum(axis=1)
        return means


def bootstrap(tables: Sequence[Floats], resamples: int = 2000, seed: int = 0) -> list[Resampled]:
    """Draw items with replacement, the same items for every table: what is computed from the samples is paired.

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


def percentile_interval(samples: NDArray[Any], estimate: float, n: int) -> Interval:
    """The middle 95 % of bootstrap samples [resamples] around `estimate`; no bounds where all samples are equal."""
    finite = samples[np.isfinite(samples)]
    if n == 0 or finite.size == 0 or not np.isfinite(estimate):
        return NO_DATA
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if high - low <= 1e-12 * abs(estimate):
        return Interval(float(estimate), np.nan, np.nan, n)
    return Interval(float(estimate), float(low), float(high), n)
