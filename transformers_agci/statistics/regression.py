"""Logistic regression with items as clusters (GEE, independence working model, sandwich errors), in closed form.

With a parameter for every combination of result, answer and cell, the estimates are the logits of the observed rates,
and their sandwich covariance follows from what each item contributes to the rates: the same numbers as statsmodels'
GEE(..., family=Binomial(), cov_struct=Independence()) after a bias correction n / (n - 1), without its loop over
10,000 items. An interaction is a contrast of logits, tested by Wald's statistic as Hotelling's T^2.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from transformers_agci.statistics.distributions import f_above, t_share
from transformers_agci.statistics.evenness import of_means
from transformers_agci.statistics.intervals import Floats, Interval, about, deviate, items_with_rows

MIN_CHANGED = 3  # answers of a cell that differ between two results: with fewer no change of its odds is estimated


class Wald(NamedTuple):
    """Wald's statistic of contrasts that are jointly zero (T^2), F's degrees of freedom, and p."""

    statistic: float
    freedom: tuple[int, int]
    p: float


def logits_of_rates(table: Floats) -> Floats | None:
    """What each item contributes to the logits of the cells' rates, [items, cells]: the logit and its influence.

    None where a cell has no row, or only zeros or only ones: its logit is infinite.
    """
    present = ~np.isnan(table)
    counts = present.sum(axis=0)
    if (counts == 0).any():
        return None
    rates = np.nansum(table, axis=0) / counts
    if ((rates <= 0) | (rates >= 1)).any():
        return None
    residual = np.where(present, np.nan_to_num(table) - rates, 0.0) * (len(table) / counts)
    found: Floats = special.logit(rates) + residual / (rates * (1 - rates))
    return found


def wald(contributions: Floats) -> Wald | None:
    """Are the means of contrasts [items, contrasts] jointly zero? None with too few items, or contrasts that agree."""
    n, contrasts = contributions.shape
    if n < fewest_items(contrasts) or contrasts < 1:
        return None
    mean, covariance = contributions.mean(axis=0), np.atleast_2d(np.cov(contributions.T)) / n
    if np.linalg.matrix_rank(covariance, hermitian=True) < contrasts:
        return None
    statistic = float(mean @ np.linalg.solve(covariance, mean))
    freedom = contrasts, n - contrasts
    return Wald(statistic, freedom, f_above(statistic * freedom[1] / (contrasts * (n - 1)), freedom))


def fewest_items(contrasts: int) -> int:
    """How many items Wald's test of so many contrasts needs."""
    return contrasts + 2


def why_untested(first: Floats, second: Floats) -> str:
    """Why `method_by_position` is None although enough answers differ in each cell."""
    items, needed = items_with_rows(first - second), fewest_items(first.shape[1] - 1)
    if items < needed:
        return f"{items} items have rows of both, and {needed} are needed"
    return "some cells change alike in every item"


def fewest_changed(first: Floats, second: Floats) -> int:
    """How many answers differ between two results, in the cell where fewest do."""
    return int((np.abs(np.nan_to_num(second - first)) > 0).sum(axis=0).min())


def method_by_position(first: Floats, second: Floats) -> Wald | None:
    """Interaction of the result with the position in the odds of a right answer: does the change depend on the cell?

    Where a cell of either result has only right or only wrong answers, its odds are infinite: the rates themselves
    (identity link) are compared instead. None where a cell has fewer than MIN_CHANGED answers that differ: Wald's
    statistic then takes what hardly varies for sure (of 80 items with one changed answer in some cell 12 % are called
    an interaction that is none, with none 49 %).
    """
    if fewest_changed(first, second) < MIN_CHANGED:
        return None
    asked = ~np.isnan(first - second).all(axis=1)
    first, second = first[asked], second[asked]
    before, after = logits_of_rates(first), logits_of_rates(second)
    if before is None or after is None:
        before, after = of_means(first), of_means(second)
    if before is None or after is None:
        return None
    change = after - before
    return wald(change[:, :-1] - change[:, -1:])


def method_by_truth(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> tuple[Interval, Interval] | None:
    """(shift, interaction) in the log odds of Yes, cells aggregated; tables of "said Yes" on Yes rows and on No rows.

    shift        how much more often the second says Yes, whatever the truth (mean of both answers)
    interaction  how much more its Yes depends on the truth: sensitivity as a log odds ratio
    """
    logits = [[_overall(table) for table in tables] for tables in (first, second)]
    if any(column is None for row in logits for column in row):
        return None
    yes, no = (np.asarray(logits[1][i]) - np.asarray(logits[0][i]) for i in (0, 1))
    items = items_with_rows(*first)
    return _mean((yes + no) / 2, items), _mean(yes - no, items)


def _overall(table: Floats) -> Floats | None:
    present = ~np.isnan(table)
    rows = int(present.sum())
    rate = float(np.nansum(table)) / rows if rows else 0.0
    if not 0 < rate < 1:
        return None
    residual = np.where(present, np.nan_to_num(table) - rate, 0.0).sum(axis=1) * (len(table) / rows)
    found: Floats = special.logit(rate) + residual / (rate * (1 - rate))
    return found


def _mean(values: Floats, items: int) -> Interval:
    """The mean of what all items contribute, of which `items` have rows of both answers."""
    n = len(values)
    error = float(values.std(ddof=1)) / np.sqrt(n) if n > 1 else 0.0
    return about(float(values.mean()), error if error > 1e-12 else 0.0, items - 1, n)


def two_sided_p(value: Interval, freedom: float) -> float:
    """The p of a 95 % interval against zero, at most .05 where zero lies outside; NaN without bounds.

    `freedom`: of the t quantile that made the interval; infinite for a normal one.
    """
    place = deviate(value, 0.0, freedom)
    return float(2 * t_share(-abs(place), freedom))
