"""What margins say about a bias: how uneven an arm is, whether it is more even than nothing, and the criteria.

Margins are [items, 2 questions (Yes, No), cells]. Evenness is the unbiased V of `statistics.evenness`; files hold V
and its interval, tables its root with its sign.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformers_agci.data.draws import random_stream
from transformers_agci.experiments.defaults import RULER_ITEMS, RULER_SETS
from transformers_agci.experiments.ruler.conditions import (
    BETAS,
    CALIBRATED_BETA,
    NOTHING,
    REPAIR,
    Condition,
)
from transformers_agci.statistics import Floats, clustered_proportion, permutation_null
from transformers_agci.statistics.evenness import (
    Change,
    Level,
    Verdict,
    compare,
    level,
    of_auc,
    of_d_prime,
    of_margins_by_distance,
    of_means,
    of_standardized_margins,
    signed_root,
    verdict,
)

ALPHA = 0.05
SIZE_LIMIT, POWER_LIMIT = 0.08, 0.9  # docs/ruler.md, written down before the ruler was run
REPAIRED = 1e-3  # margins of the known repair against beta 0's

Margins = Mapping[str, Floats]  # by the condition's name


class Side(NamedTuple):
    """Margins of the two questions, [items, cells] each."""

    yes: Floats
    no: Floats

    @classmethod
    def of(cls, margins: Floats) -> "Side":
        """From [items, 2, cells]."""
        return cls(margins[:, 0], margins[:, 1])

    def chosen(self, items: NDArray[np.intp]) -> "Side":
        """The rows of these items."""
        return Side(self.yes[items], self.no[items])

    def permuted(self, order: NDArray[np.intp]) -> "Side":
        """The cells of every item in another order [items, cells], the same for both questions."""
        return Side(*(np.take_along_axis(table, order, axis=1) for table in self))


def describe(side: Side) -> dict[str, Any]:
    """One arm by itself: accuracies, V of four measures, and the test of a position effect."""
    said_yes, said_yes_wrongly = (side.yes > 0).astype(float), (side.no > 0).astype(float)
    both = np.concatenate([said_yes, 1 - said_yes_wrongly], axis=1)
    shares = {"yes": said_yes, "no": 1 - said_yes_wrongly, "balanced": both}
    measures = {
        "margin": of_standardized_margins(side.yes, side.no),
        "auc": of_auc(side.yes, side.no),
        "d_prime": of_d_prime(said_yes, said_yes_wrongly),
        "accuracy": of_means(said_yes),
    }
    return {
        "items": len(side.yes),
        "accuracy": {name: clustered_proportion(table)._asdict() for name, table in shares.items()},
        "yes_by_row": [float(row) for row in said_yes.mean(0).reshape(-1, 3).mean(1)],
        "margin_by_row": [float(row) for row in side.yes.mean(0).reshape(-1, 3).mean(1)],
        "unevenness": {name: _plain(level(contributions)) for name, contributions in measures.items()},
        "position_p": permutation_null(side.yes).sd.p,
    }


def against(first: Side, second: Side) -> dict[str, Any]:
    """A second result beside the first, on the same items: changes of V, and the verdict of `agci metrics`."""
    decisive, confirming = _changes(first, second)
    return {
        "verdict": verdict(decisive, confirming, len(first.yes)),
        "margin": _plain(decisive),
        "margin_by_distance": _plain(confirming),
        "auc": _plain(compare(of_auc(*first), of_auc(*second))),
        "accuracy": _plain(compare(*(of_means((side.yes > 0).astype(float)) for side in (first, second)))),
    }


def verdict_on(first: Side, second: Side) -> Verdict:
    """Whether the second result is more even than the first: V of the margins, in both units."""
    return verdict(*_changes(first, second), len(first.yes))


def _changes(first: Side, second: Side) -> tuple[Change | None, Change | None]:
    return (
        compare(of_standardized_margins(*first), of_standardized_margins(*second)),
        compare(of_margins_by_distance(*first), of_margins_by_distance(*second)),
    )


def summarize(margins: Margins, conditions: Sequence[Condition]) -> dict[str, Any]:
    """Every condition described, and where an arm does something, compared with nothing."""
    found: dict[str, Any] = {}
    for condition in conditions:
        side = Side.of(margins[condition.name])
        found[condition.name] = {"bias": condition.bias, "beta": condition.beta, "arm": condition.arm, **describe(side)}
        if condition.arm != NOTHING:
            nothing = Side.of(margins[Condition(condition.beta).name])
            found[condition.name]["against nothing"] = against(nothing, side)
        uniform = Condition(condition.beta, "uniform").name
        if condition.arm == "agci" and uniform in margins:
            found[condition.name]["against uniform"] = against(Side.of(margins[uniform]), side)
    return found


class Criterion(NamedTuple):
    """One sentence of the preregistration, what was found, and whether it is met.

    `met` is None where less was run than it was registered for, which may say nothing about it.
    """

    name: str
    stated: str
    found: str
    met: bool | None

    @property
    def judged(self) -> str:
        """Whether it is met, in words."""
        return "not judged" if self.met is None else "met" if self.met else "NOT MET"


def _judged(criteria: Sequence[Criterion], registered: str, run: str) -> list[Criterion]:
    """Criteria that were registered for a larger run than this one are not judged."""
    if registered == run:
        return list(criteria)
    return [c._replace(met=None, found=f"{c.found}; registered for {registered}, run on {run}") for c in criteria]


def ruler_criteria(margins: Margins, summary: Mapping[str, Any], registered: int = RULER_ITEMS) -> list[Criterion]:
    """Criteria 2, judged from `registered` items on, and 4, which was registered for any number."""
    levels = [summary[Condition(beta).name]["unevenness"]["margin"] for beta in BETAS]
    deviations = [signed_root(of_beta["estimate"]) if of_beta else math.nan for of_beta in levels]
    baseline = margins[Condition(0.0).name]
    apart = max(float(np.abs(margins[Condition(beta, REPAIR).name] - baseline).max()) for beta in BETAS)
    monotone = Criterion(
        "monotone",
        "sd of the margins rises with every step of beta",
        " < ".join(f"{deviation:.3f}" for deviation in deviations),
        all(low < high for low, high in itertools.pairwise(deviations)),
    )
    repair = Criterion(
        "repair", f"margins of the known repair are beta 0's to {REPAIRED:g}", f"{apart:.1g}", apart <= REPAIRED
    )
    run = min(registered, len(baseline))
    return [*_judged([monotone], f"{registered} items", f"{run} items"), repair]


class ItemSet(NamedTuple):
    """What was said about one item set."""

    effect_at_zero: bool  # with permuted cells
    verdict_at_zero: Verdict  # on AGCI, with permuted cells
    effect: bool  # at CALIBRATED_BETA
    verdict_on_repair: Verdict


def item_sets(margins: Margins, items: int, sets: int) -> Iterator[ItemSet]:
    """Judge `sets` sets of `items` items, each drawn without replacement from the pool whose margins are given."""
    zero, agci = (Side.of(margins[Condition(0.0, arm).name]) for arm in (NOTHING, "agci"))
    biased, repaired = (Side.of(margins[Condition(CALIBRATED_BETA, arm).name]) for arm in (NOTHING, REPAIR))
    for number in range(sets):
        rng = random_stream("ruler", "item set", number)
        chosen = rng.choice(len(zero.yes), size=items, replace=False)
        order = rng.permuted(np.tile(np.arange(zero.yes.shape[1]), (items, 1)), axis=1)  # [items, cells]

        null, null_agci = (side.chosen(chosen).permuted(order) for side in (zero, agci))
        some_biased, some_repaired = (side.chosen(chosen) for side in (biased, repaired))
        yield ItemSet(
            permutation_null(null.yes).sd.p <= ALPHA,
            verdict_on(null, null_agci),
            permutation_null(some_biased.yes).sd.p <= ALPHA,
            verdict_on(some_biased, some_repaired),
        )


def calibration_criteria(sets: Sequence[ItemSet], items: int = RULER_ITEMS) -> list[Criterion]:
    """Criteria 1 and 3 from sets of so many items; judged where these are as many sets and items as were registered."""
    count = len(sets)

    def share(name: str, stated: str, hits: int, most: bool) -> Criterion:
        met = hits <= SIZE_LIMIT * count if most else hits >= POWER_LIMIT * count
        return Criterion(name, stated, f"{hits} of {count}", met)

    at_most, at_least = f"at most {SIZE_LIMIT:g}", f"at least {POWER_LIMIT:g}"
    criteria = [
        share(
            "size of the test",
            f"position effect with permuted cells: {at_most}",
            sum(s.effect_at_zero for s in sets),
            True,
        ),
        share(
            "size of the verdict",
            f"more or less even with permuted cells: {at_most}",
            sum(s.verdict_at_zero in ("more even", "less even") for s in sets),
            True,
        ),
        share(
            "power of the test",
            f"position effect at beta {CALIBRATED_BETA:g}: {at_least}",
            sum(s.effect for s in sets),
            False,
        ),
        share(
            "power of the verdict",
            f"known repair of beta {CALIBRATED_BETA:g} is more even: {at_least}",
            sum(s.verdict_on_repair == "more even" for s in sets),
            False,
        ),
    ]
    run = f"{min(count, RULER_SETS)} sets of {min(items, RULER_ITEMS)} items"
    return _judged(criteria, f"{RULER_SETS} sets of {RULER_ITEMS} items", run)


def _plain(found: Level | Change | None) -> dict[str, Any] | None:
    return None if found is None else found._asdict()
