"""Distributions and ranks, by scipy.special.

scipy.stats has the same under better names, but loading it takes half a second of processor time: more than all the
tables of `agci metrics` together, and a hundredth of the demo. Values agree with it to the last digit or two.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.floating[Any]]


def normal_quantiles(share: ArrayLike) -> Floats:
    """Values below which `share` of the standard normal distribution lies."""
    found: Floats = special.ndtri(share)
    return found


def t_share(value: ArrayLike, freedom: ArrayLike) -> Floats:
    """The share of Student's t that lies below `value`; of what lies above, give -value. Infinite freedom: normal."""
    found: Floats = special.stdtr(freedom, value)
    return found


def t_quantiles(share: ArrayLike, freedom: float) -> Floats:
    """Values below which `share` of Student's t lies. Infinite freedom: normal."""
    at_0 = np.equal(share, 0) & (freedom > 0)
    found: Floats = np.where(at_0, -np.inf, special.stdtrit(freedom, share))  # that has +inf
    return found


def f_above(value: float, freedom: tuple[int, int]) -> float:
    """The share of the F distribution that lies above `value`."""
    return float(special.fdtrc(*freedom, max(value, 0.0)))


def chi2_above(value: float, freedom: int) -> float:
    """The share of chi^2 that lies above `value`."""
    return float(special.chdtrc(freedom, max(value, 0.0))) if freedom > 0 else math.nan


def chi2_quantile(share: float, freedom: float) -> float:
    """The value below which `share` of chi^2 lies."""
    return float(2 * special.gammaincinv(freedom / 2, share)) if freedom > 0 else math.nan


def even_binomial_share(successes: float, trials: float) -> float:
    """The probability of at most so many successes where each of the trials succeeds by the toss of a coin."""
    # not bdtr, which is wrong in the sixth digit at 1e9 trials
    return float(special.betainc(trials - successes, successes + 1, 0.5)) if successes < trials else 1.0


def ranks(values: Floats) -> Floats:
    """The ranks of values [n] from 1; equal values share the mean of theirs.

    >>> ranks(np.array([7.0, 3.0, 7.0, 9.0])).tolist()
    [2.5, 1.0, 2.5, 4.0]
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return found
