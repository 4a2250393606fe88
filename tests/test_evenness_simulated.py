"""Evenness in simulations: how often a change is called where there is none, and found where there is one.

Every bound is two-sided or tight enough to fail.
"""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from scipy import stats
from simulated_answers import SIZES, coverage, noise, tables, truth_or_fail

from transformers_agci import statistics as st
from transformers_agci.experiments.position.pair_evenness import compare_evenness
from transformers_agci.experiments.position.results import ProbeResult, Tables
from transformers_agci.statistics.evenness import Verdict, of_auc, of_d_prime, of_standardized_margins
from transformers_agci.statistics.evenness import compare as compare_unevenness

pytestmark = pytest.mark.slow


ROWS = np.repeat([1.0, 0.0, -1.0], 3) * np.sqrt(1.5)  # a bias of sd 1 over nine cells


def two_results(
    rng: np.random.Generator,
    items: int,
    *,
    bias: tuple[float, float] = (0.0, 0.0),
    shift: float = 0.0,
    scale: float = 1.0,
    kind: str = "normal",
    louder: float = 1.0,
    missing: float = 0.0,
    alike: float = 0.9,
) -> Any:
    """Two results of one model in its margins, the second one's noise being correlated with the first's by `alike`."""
    sides = []
    for answer, mean in (("yes", 1.28), ("no", -1.28)):
        before, fresh = noise(rng, items, kind=kind), noise(rng, items, kind=kind)
        after = alike * before + np.sqrt(1 - alike**2) * fresh
        lean = [b * ROWS if answer == "yes" else 0 * ROWS for b in bias]
        pair = [mean + lean[0] + before, scale * (mean + shift + lean[1] + louder * after)]
        gone = rng.random((items, 9)) < missing
        sides.append([tables(np.where(gone, np.nan, margins), answer) for margins in pair])
    return [
        ProbeResult(label, (3, 3), tuple(map(str, range(items))), sides[0][i], sides[1][i])
        for i, label in enumerate(("first", "second"))
    ]


def without_margins(result: ProbeResult) -> ProbeResult:
    sides = [
        Tables(t.correct, t.said_yes, t.unreadable, np.full_like(t.margin, np.nan)) for t in (result.yes, result.no)
    ]
    return ProbeResult(result.label, result.shape, result.items, *sides)


def verdicts(items: int, replicates: int, seed: int, margins: bool = True, **truth: Any) -> dict[str, float]:
    """Shares of the four verdicts."""
    rng = np.random.default_rng(seed)
    said = []
    for _ in range(replicates):
        results = two_results(rng, items, **truth)
        first, second = results if margins else map(without_margins, results)
        said.append(compare_evenness((first.yes, second.yes), (first.no, second.no)).verdict)
    return {word: said.count(word) / replicates for word in get_args(Verdict)}


NO_CHANGE = {
    "shift": {"shift": 0.6},
    "shift, equal bias": {"shift": 0.6, "bias": (0.3, 0.3)},
    "shift down, equal bias": {"shift": -1.0, "bias": (0.3, 0.3)},
    "shift and scale": {"shift": 0.6, "scale": 2.5, "bias": (0.3, 0.3)},
    "independent noise": {"shift": 0.6, "bias": (0.3, 0.3), "alike": 0.0},
    "rows of the grid alike": {"shift": 0.6, "bias": (0.3, 0.3), "kind": "rows"},
    "heavy tails": {"shift": 0.6, "bias": (0.3, 0.3), "kind": "t"},
    "louder noise": {"shift": 0.6, "bias": (0.3, 0.3), "louder": 1.5},
    "missing rows": {"shift": 0.6, "bias": (0.3, 0.3), "missing": 0.1},
    "nothing but a shift": {"shift": 0.6, "bias": (0.3, 0.3), "alike": 1.0},
}


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("truth", NO_CHANGE.values(), ids=NO_CHANGE)
@pytest.mark.parametrize("margins", [True, False], ids=["margins", "answers only"])
def test_no_change_of_evenness_is_called_one_in_eight_percent_at_most(
    items: int, truth: dict[str, Any], margins: bool
) -> None:
    found = verdicts(items, 100, seed=items, margins=margins, **truth)
    assert found["more even"] + found["less even"] <= 0.08
    if margins:  # and it does say something
        assert found["cannot tell"] <= 0.2 or "louder" in truth


@pytest.mark.parametrize("after, said", [(0.0, "more even"), (0.1, "more even"), (0.4, "less even")])
@pytest.mark.parametrize("other", [{}, {"shift": 0.6}, {"scale": 2.0}, {"kind": "t"}, {"missing": 0.1}], ids=str)
def test_a_real_change_is_found_in_93_percent_at_300_items(after: float, said: str, other: dict[str, Any]) -> None:
    assert verdicts(300, 100, seed=1, bias=(0.2, after), **other)[said] >= 0.93


@pytest.mark.parametrize(
    "before, after, least",
    [(0.2, 0.0, 0.5), (0.3, 0.0, 0.85), (0.4, 0.0, 0.93), (0.5, 0.1, 0.93), (0.6, 0.0, 0.93)],
)
def test_a_real_change_is_found_in_answers_only(before: float, after: float, least: float) -> None:
    """Cells that are nearly always right have no d' and are left out. Of .3 removed 92 to 94 % are found,
    of .2 56 to 57 % (43 to 46 % where the jackknife's error counts twice what only two items together do)."""
    found = verdicts(300, 60, seed=2, margins=False, bias=(before, after), shift=0.0)
    assert found["more even"] >= least


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_a_threshold_moved_down_is_no_change_for_answers_only(bias: float) -> None:
    """False alarms are few, so that most cells have no d'."""
    found = verdicts(300, 60, seed=3, margins=False, bias=(bias, bias), shift=-1.0)
    assert found["more even"] + found["less even"] <= 0.08
    assert found["cannot tell"] >= 0.8


@pytest.mark.parametrize("items", SIZES)
def test_the_difference_of_evenness_covers_the_truth(items: int) -> None:
    """In the own sd of the margins, .3 -> .1; V of deviations would be a difference of noisy, biased numbers."""

    def draw(rng: np.random.Generator) -> Any:
        first, second = two_results(rng, items, bias=(0.3, 0.1), shift=0.5)
        change = compare_unevenness(
            of_standardized_margins(first.yes.margin, first.no.margin),
            of_standardized_margins(second.yes.margin, second.no.margin),
        )
        return st.Interval(*change[2:], 1), 0.1**2 - 0.3**2

    truth_or_fail(coverage(draw, 400, seed=items), 0.91, 0.985, "margins")


@pytest.mark.parametrize("items", [100, 300])
def test_evenness_of_auc_and_d_prime_covers_the_truth(items: int) -> None:
    cells = 1.28 + 0.5 * ROWS
    auc = np.var(stats.norm.cdf((cells + 1.28) / np.sqrt(2)))

    def draw(measure: Callable[..., Any], truth: float) -> Any:
        def once(rng: np.random.Generator) -> Any:
            first, second = two_results(rng, items, bias=(0.5, 0.0), alike=0.5)
            return st.Interval(*compare_unevenness(measure(first), measure(second))[2:], 1), truth

        return once

    rate = coverage(draw(lambda r: of_auc(r.yes.margin, r.no.margin), -auc), 300, seed=items)
    truth_or_fail(rate, 0.9, 0.99, "AUC")
    if items == 300:  # with fewer some cell has hardly a wrong answer
        rng = np.random.default_rng(3)
        covered = []
        for _ in range(300):
            first, second = two_results(rng, items, bias=(0.5, 0.0), alike=0.5)
            change = compare_unevenness(*(of_d_prime(r.yes.said_yes, r.no.said_yes) for r in (first, second)))
            if change:
                covered.append(change.low <= -0.25 <= change.high)
        assert len(covered) > 150
        truth_or_fail(np.mean(covered), 0.9, 0.99, "d'")
