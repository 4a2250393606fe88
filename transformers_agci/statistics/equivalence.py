"""Equivalence: "no difference" needs a margin that was stated beforehand, and two one-sided tests (Schuirmann 1987)."""

from typing import NamedTuple

from scipy import stats

from transformers_agci.statistics.intervals import Interval, t_quantile


class Equivalence(NamedTuple):
    """The margin within which a difference does not matter, the larger of the two one-sided p, and what was shown."""

    margin: float
    p: float
    shown: bool


def equivalence(difference: Interval, margin: float, items: int, level: float = 0.05) -> Equivalence | None:
    """Whether a difference is shown to lie within -margin..margin; `margin` in its unit, above zero.

    The standard error is that of the difference's 95 % t interval over items. None where it has no interval.
    """
    width = difference.high - difference.low
    if not width > 0 or items < 2:
        return None
    error = width / 2 / t_quantile(items - 1)
    too_low = stats.t.sf((difference.estimate + margin) / error, items - 1)
    too_high = stats.t.sf((margin - difference.estimate) / error, items - 1)
    p = float(max(too_low, too_high))
    return Equivalence(margin, p, p <= level)
