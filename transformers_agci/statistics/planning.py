"""How many items show an effect of a given size, with which power: from a pilot's variances."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from transformers_agci.statistics.distributions import chi2_quantile
from transformers_agci.statistics.intervals import Floats

ALPHA = 0.05
POWERS = (0.8, 0.9, 0.95)
MOST_ITEMS = 10_000_000


class Plan(NamedTuple):
    """Items for one power."""

    power: float
    items: int | None  # None: more than MOST_ITEMS


def residual_variance(table: Floats) -> float:
    """Variance of a row about its item's and its cell's mean, [items, cells]; items without a missing row only."""
    complete = table[~np.isnan(table).any(axis=1)]
    n, cells = complete.shape
    if n < 2 or cells < 2:
        return math.nan
    residual = complete - complete.mean(axis=1, keepdims=True) - complete.mean(axis=0) + complete.mean()
    return float((residual**2).sum() / ((n - 1) * (cells - 1)))


def variance_bounds(freedom: int) -> tuple[float, float]:
    """The 95 % interval of a variance that was estimated with these degrees of freedom, as multiples of the estimate.

    Items that an effect needs are nearly proportional to it.

    >>> [round(bound, 2) for bound in variance_bounds(10)]
    [0.49, 3.08]
    """
    low, high = (freedom / chi2_quantile(share, freedom) for share in (0.975, 0.025))
    return low, high


def position_power(items: int, cells: int, deviation: float, variance: float) -> float:
    """Power of the test of a position effect: cells that differ with standard deviation `deviation` about their mean.

    noncentrality = n sum (mu_c - mean)^2 / residual variance = n C deviation^2 / variance; F with C - 1 and
    (C - 1)(n - 1) degrees of freedom.
    """
    if items < 2:
        return 0.0
    freedom = cells - 1, (cells - 1) * (items - 1)
    noncentrality = items * cells * deviation**2 / variance
    return float(stats.ncf.sf(stats.f.isf(ALPHA, *freedom), *freedom, noncentrality))


def difference_power(items: int, difference: float, variance: float) -> float:
    """Power of a two-sided t test of a mean difference over items, whose variance between items is `variance`."""
    if items < 2:
        return 0.0
    noncentrality = difference * math.sqrt(items / variance)
    critical = stats.t.isf(ALPHA / 2, items - 1)
    return float(stats.nct.sf(critical, items - 1, noncentrality) + stats.nct.cdf(-critical, items - 1, noncentrality))


def items_for_position(cells: int, deviation: float, variance: float) -> list[Plan]:
    """The smallest numbers of items that reach each of POWERS."""
    return [Plan(power, _smallest(lambda n: position_power(n, cells, deviation, variance), power)) for power in POWERS]


def items_for_difference(difference: float, variance: float) -> list[Plan]:
    """The smallest numbers of items that reach each of POWERS."""
    return [Plan(power, _smallest(lambda n: difference_power(n, difference, variance), power)) for power in POWERS]


def _smallest(power_of: Callable[[int], float], power: float) -> int | None:
    """Bisection; power rises with the number of items."""
    high = 2
    while power_of(high) < power:
        high *= 2
        if high > MOST_ITEMS:
            return None
    low = high // 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle + 1, high)
    return high
