"""Equivalence: "no difference" needs a margin that was stated beforehand, and two one-sided tests (Schuirmann 1987)."""

import math
from typing import NamedTuple

from transformers_agci.statistics.distributions import t_share
from transformers_agci.statistics.intervals import Interval, deviate


class Equivalence(NamedTuple):
    """The margin within which a difference does not matter, the larger of the two one-sided p, and what was shown."""

    margin: float
    p: float
    shown: bool


def equivalence(difference: Interval, margin: float, freedom: float, level: float = 0.05) -> Equivalence | None:
    """Whether a difference is shown to lie within -margin..margin; `margin` in its unit, above zero.

    The standard error is that of the difference's 95 % interval. `freedom`: of the t quantile that made it; infinite
    for a normal one. None where it has no interval.
    """
    above, below = (deviate(difference, bound, freedom) for bound in (-margin, margin))
    if math.isnan(above):
        return None
    p = float(max(t_share(-above, freedom), t_share(below, freedom)))
    return Equivalence(margin, p, p <= level)
