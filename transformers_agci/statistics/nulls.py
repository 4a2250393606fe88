"""Tests of one table [items, cells] against "where the target stands does not matter".

Three tests, none of which assumes that the rows of an item are independent. The permutation null assumes that the
values of an item could change places (exchangeability); Hotelling's T^2 assumes no such thing, but needs more items
than cells; Cochran's Q is for zeros and ones and assumes equal correlations between cells.
"""

from typing import NamedTuple

import numpy as np

from transformers_agci.statistics.distributions import chi2_above, f_above
from transformers_agci.statistics.intervals import CONFIDENCE, Floats, cell_means

NORMAL_LIMIT = 1000  # items; with more, sums of permuted values are drawn from their normal limit
FEW_FAILURES = 5  # per cell, on average: below it chi^2 is no approximation


def deviation(means: Floats) -> Floats:
    """Population standard deviation over the cells, the last axis: what a map shows, noise included."""
    found: Floats = np.nanstd(means, axis=-1)
    return found


def gap(means: Floats) -> Floats:
    """Largest minus smallest cell, over the last axis."""
    found: Floats = np.nanmax(means, axis=-1) - np.nanmin(means, axis=-1)
    return found


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


class TestResult(NamedTuple):
    """A test's statistic, its degrees of freedom and p."""

    statistic: float
    freedom: tuple[int, ...]
    p: float


def permutation_null(table: Floats, permutations: int = 2000, seed: int = 0) -> SpreadTest:
    """Test unevenness over the cells against "where the target sits does not matter".

    Under that hypothesis the values of one item are exchangeable among its cells: each permutation shuffles them
    within every item. p = (1 + permutations at least as uneven) / (1 + permutations).
    """
    means = permuted_cell_means(table, permutations, seed)
    observed = cell_means(table)
    return SpreadTest(*(_spread(measure(observed), measure(means)) for measure in (deviation, gap)))


def _spread(observed: Floats, null: Floats) -> Spread:
    reached = int((null >= observed - 1e-12).sum())
    return Spread(
        float(observed), float(null.mean()), float(np.quantile(null, CONFIDENCE)), (1 + reached) / (1 + len(null))
    )


def permuted_cell_means(table: Floats, permutations: int, seed: int) -> Floats:
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
        sums[:, columns] += _shuffled_sums(rows, permutations, rng) - rows.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means: Floats = sums / present.sum(axis=0)
    return means


def _shuffled_sums(rows: Floats, permutations: int, rng: np.random.Generator) -> Floats:
    """[permutations, cells] sums over items [items, cells] whose values are shuffled.

    A shuffled item has the mean of its values in every cell, their variance s^2 (over cells, divisor C - 1) and the
    covariance s^2 (I - 1/C). The sum over many items is normal with the sums of these.
    """
    items, cells = rows.shape
    if items <= NORMAL_LIMIT:
        return np.stack([rng.permuted(rows, axis=1).sum(axis=0) for _ in range(permutations)])
    noise = rng.normal(size=(permutations, cells)) * np.sqrt(rows.var(axis=1, ddof=1).sum())
    limit: Floats = rows.mean(axis=1).sum() + noise - noise.mean(axis=1, keepdims=True)
    return limit


def hotelling(table: Floats) -> TestResult | None:
    """Hotelling's T^2: are the cell means equal, whatever the covariance within items? F on C - 1 and n - C + 1.

    Only items with all cells count. None where there are too few, or a difference between cells does not vary.
    """
    complete = table[~np.isnan(table).any(axis=1)]
    n, contrasts = len(complete), table.shape[1] - 1
    if contrasts < 1 or n <= contrasts + 1:
        return None
    differences = complete[:, :-1] - complete[:, -1:]
    mean, covariance = differences.mean(axis=0), np.atleast_2d(np.cov(differences.T))
    if np.linalg.matrix_rank(covariance, hermitian=True) < contrasts:
        return None
    statistic = float(n * mean @ np.linalg.solve(covariance, mean))
    freedom = contrasts, n - contrasts
    return TestResult(statistic, freedom, f_above(statistic * freedom[1] / (contrasts * (n - 1)), freedom))


def cochran_q(table: Floats) -> TestResult | None:
    """Cochran's Q of a table of zeros and ones: chi^2 on C - 1. Only items with all cells; None where none differs."""
    complete = table[~np.isnan(table).any(axis=1)]
    if table.shape[1] < 2 or not len(complete) or (complete == complete[:, :1]).all():
        return None
    cells, ones, items = table.shape[1], complete.sum(axis=0), complete.sum(axis=1)
    spread = cells * (ones**2).sum() - ones.sum() ** 2
    statistic = float((cells - 1) * spread / (cells * items.sum() - (items**2).sum()))
    return TestResult(statistic, (cells - 1,), chi2_above(statistic, cells - 1))


def failures_by_position(table: Floats, unreadable: Floats, seed: int = 0) -> TestResult | None:
    """Do rows fail at some positions more than at others? Failed is a missing row, or a reply that is neither answer.

    What is missing because it was wrong makes every other test invalid (the permutation null has a size of .34 then).
    Cochran's Q on the failures of the items; p by permutation where they are few. None without a failure.
    """
    failed = (np.isnan(table) | (np.nan_to_num(unreadable) > 0)).astype(float)
    failed = failed[~np.isnan(table).all(axis=1)]
    test = cochran_q(failed)
    if test is None or failed.sum() >= FEW_FAILURES * table.shape[1]:
        return test
    return test._replace(p=permutation_null(failed, seed=seed).sd.p)
