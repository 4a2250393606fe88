"""Per-cell d' of two results of answers alone at one threshold, for margins of a given shape.

Where the threshold moved between two results, the rates of Yes in the cells moved with it, and how far apart they are
then depends on the distribution of margins that nobody has seen. If that distribution is F, up to place, the rates r
that a result would have at a threshold lower by d are F(F^-1(r) + d). So one of two results is carried to the threshold
of the other, d being what makes their rates equal on average; for Yes rows and for No rows each, the result whose rates
are less extreme is carried, because the other way errors would grow. If F is right and the threshold alone has moved,
the d' of both are then equally uneven.
"""

from typing import Literal

import numpy as np

from transformers_agci.statistics.distributions import normal_quantiles, t_quantiles, t_share
from transformers_agci.statistics.evenness import Change, compare, corrected_rates, pseudo_values
from transformers_agci.statistics.intervals import Floats

Tails = Literal["t(3)", "Cauchy"]
FREEDOM: dict[Tails, int] = {"t(3)": 3, "Cauchy": 1}  # of the t distribution with these tails
HALVINGS = 40  # of the interval in which d lies
INSIDE = 1e-9  # how near to 0 and 1 a rate may be carried

Answers = tuple[Floats, Floats]  # "said Yes" of the Yes rows and of the No rows, [items, cells]


def compare_at_one_threshold(first: Answers, second: Answers, tails: Tails) -> Change | None:
    """V of the per-cell d' of second - that of first, in units of z, with one of them carried to the other's threshold.

    Every cell must be one of `evenness.cells_with_d_prime` in both.
    """
    z = []
    for tables in zip(first, second, strict=True):  # Yes, then No
        rates = [corrected_rates(table) for table in tables]
        extremes = [abs(float(whole.mean()) - 0.5) for whole, _ in rates]
        carried = 0 if extremes[0] < extremes[1] else 1
        (own, without), (mean, means_without) = rates[carried], (r.mean(axis=-1) for r in rates[1 - carried])
        freedom = FREEDOM[tails]
        rates[carried] = _carry(own, mean, freedom), _carry(without, means_without, freedom)
        z.append([tuple(normal_quantiles(values) for values in of_one) for of_one in rates])
    yes, no = z
    return compare(*(pseudo_values(yes[i][0] - no[i][0], yes[i][1] - no[i][1]) for i in (0, 1)))


def _carry(rates: Floats, mean: Floats, freedom: float) -> Floats:
    """Rates [..., C] at the threshold where their mean over the cells is `mean` [...]."""
    places = t_quantiles(rates, freedom)
    target = t_quantiles(mean, freedom)
    low, high = target - places.max(axis=-1), target - places.min(axis=-1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = t_share(places + middle[..., None], freedom).mean(axis=-1) < mean
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found: Floats = np.clip(t_share(places + ((low + high) / 2)[..., None], freedom), INSIDE, 1 - INSIDE)
    return found
