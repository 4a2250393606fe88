"""The interval of a gain by a choice that is repeated in folds: each reports the arm that had the best score elsewhere.

An arm is a lambda or a method; arm 0 is the baseline, which gains nothing. What the folds report has no bias, but their
mean is less sure than that of one arm settled beforehand: where all folds choose the same arm, it is the one that did
best on these very items; otherwise an item that speaks for an arm makes the other folds choose it. With the choices
taken as settled the interval held the truth in 84 to 92 % of simulated samples, and no estimate of the variance from
one set of folds is without bias (Bengio and Grandvalet 2004; Bates, Hastie and Tibshirani 2023).

So the quantile is that of the procedure itself. Choices and reports are drawn from normal distributions with the arms'
covariance over items, the choosing included, where all arms that may be best are equally good: there the choice is
least certain. Arms that are clearly worse stay as much worse as is shown (as in Hansen's test of superior predictive
ability, 2005).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transformers_agci.statistics.intervals import CONFIDENCE, Floats, Interval, normal_quantile, t_quantile

DRAWS, SEED = 5000, 0
CLEARLY = 3.0  # standard errors below the best score; what is further below is known to be worse


def influence(deleted: Floats) -> Floats:
    """[items]: what each item adds to a measure, with mean zero, from the measure without each item in turn."""
    found: Floats = (len(deleted) - 1) * (deleted.mean() - deleted)
    return found


def with_choices(
    gain: Interval, score: Sequence[float], score_by_item: Floats, gain_by_item: Floats, folds: NDArray[Any]
) -> Interval:
    """The mean gain of what the folds chose, from its interval with the choices taken as settled.

    `score` [arms] is what chooses, larger is better; `score_by_item` and `gain_by_item` [items, arms] are what each
    item adds to scores and gains (`influence`), and `folds` [items] says in which fold it reports. Where folds choose
    the baseline, the interval is at least as long as that of the best other arm, if that may be best.
    """
    items = len(score_by_item)
    below = _known_to_be_below(np.asarray(score), score_by_item)
    errors = gain_by_item.std(axis=0, ddof=1) / items**0.5
    other = 1 + int(np.argmax(score[1:]))
    least = errors[other] if below[other] == 0 else 0.0
    quantile = _quantile(below, score_by_item, gain_by_item, np.bincount(folds).astype(float))
    wider = quantile / normal_quantile()
    half = max(wider * (gain.high - gain.low) / 2, wider * t_quantile(items - 1) * least)
    return gain._replace(low=gain.estimate - half, high=gain.estimate + half)


def _known_to_be_below(score: Floats, by_item: Floats) -> Floats:
    """[arms]: how far each score lies below the best one at least, 0 for all that may be the best."""
    best = int(np.argmax(score))
    errors = (by_item[:, [best]] - by_item).std(axis=0, ddof=1) / len(by_item) ** 0.5
    found: Floats = np.maximum(0.0, score[best] - score - CLEARLY * errors)
    return found


def _quantile(below: Floats, score_by_item: Floats, gain_by_item: Floats, sizes: Floats) -> float:
    """The 95 % quantile of |mean gain| / the standard error that `with_choices` takes; 1.96 at least."""
    items, arms = score_by_item.shape
    covariance = np.cov(np.concatenate([score_by_item, gain_by_item], axis=1).T)
    variances = np.diag(covariance)[arms:]
    drawn = np.random.default_rng(SEED).multivariate_normal(
        np.zeros(2 * arms), covariance, (DRAWS, len(sizes)), method="eigh"
    )
    drawn /= np.sqrt(sizes)[:, None]  # means over the items of a fold
    scores, gains = drawn[..., :arms], drawn[..., arms:]
    sums = scores * sizes[:, None]
    total = sums.sum(axis=1, keepdims=True)
    chosen = ((total - sums) / (items - sizes)[:, None] - below).argmax(axis=-1)
    mean = np.take_along_axis(gains, chosen[..., None], axis=-1)[..., 0] @ sizes / items
    other = 1 + (total[:, 0] / items - below)[:, 1:].argmax(axis=-1)
    least = np.where(below[other] == 0, variances[other], 0.0) / items
    error = np.sqrt(np.maximum(variances[chosen] @ sizes / items**2, least))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(error > 0, np.abs(mean) / error, 0.0)
    return max(float(np.quantile(ratio, CONFIDENCE)), normal_quantile())
