"""Simulated results of known truth: coverage of intervals, size of tests.

Every bound is two-sided or tight enough to fail: an interval that covers always is as wrong as one that covers rarely,
unless it is said to be cautious. The seeds are fixed. `perf/verdict_simulation.py` prints the whole table.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from simulated_answers import SIZES, coverage, noise, truth_or_fail

from transformers_agci import statistics as st
from transformers_agci.statistics import intervals, nulls, regression, signal_detection, thresholds
from transformers_agci.statistics.evenness import of_means

pytestmark = pytest.mark.slow


def coins(rng: np.random.Generator, items: int, p: float, within: float) -> np.ndarray:
    return (noise(rng, items, within) < stats.norm.ppf(p)).astype(float)


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("within", [0.0, 0.3, 0.9])
def test_differences_of_proportions_cover_the_truth(items: int, within: float) -> None:
    def draw(rng: np.random.Generator) -> Any:
        before, fresh = noise(rng, items, within), noise(rng, items, within)
        after = 0.9 * before + np.sqrt(0.19) * fresh
        first, second = ((z < stats.norm.ppf(p)).astype(float) for z, p in ((before, 0.9), (after, 0.93)))
        measured = st.proportion_difference(first, second)
        cells.append(measured.cells[4].low <= 0.03 <= measured.cells[4].high)
        return measured.overall, 0.03

    cells: list[bool] = []
    truth_or_fail(coverage(draw, 500, seed=items), 0.89, 0.985, "overall")
    truth_or_fail(float(np.mean(cells)), 0.93, 0.999, "one cell")


@pytest.mark.parametrize("items", SIZES)
def test_clustered_proportions_of_unequal_items_cover_the_truth(items: int) -> None:
    """Half of the items have one row of nine: where the wrong rows are all in these, items seem to know more than they
    do (79 % at 30 items by the variance between items alone)."""

    def draw(rng: np.random.Generator) -> Any:
        table = (rng.random((items, 9)) < rng.beta(0.1, 0.9 / 81, size=(items, 1))).astype(float)
        table[: items // 2, 1:] = np.nan
        return st.clustered_proportion(table), 0.9

    truth_or_fail(coverage(draw, 800, seed=items), 0.9, 0.98, "unequal items")


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("hits, alarms", [(0.99, 0.01), (0.9, 0.1)])
def test_d_prime_and_criterion_cover_the_truth(items: int, hits: float, alarms: float) -> None:
    z = stats.norm.ppf([hits, alarms])

    def of(measure: Callable[..., Any], truth: float) -> Any:
        def draw(rng: np.random.Generator) -> Any:
            return measure(coins(rng, items, hits, 0.3), coins(rng, items, alarms, 0.3)).overall, truth

        return draw

    truth_or_fail(coverage(of(signal_detection.d_prime_intervals, z[0] - z[1]), 400, 4), 0.9, 0.99, "d'")
    truth_or_fail(coverage(of(signal_detection.criterion_intervals, -z.sum() / 2), 400, 5), 0.9, 1.0, "c")


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("hard_in_both", [0.9, -0.9])
def test_d_prime_criterion_and_balanced_accuracy_of_items_that_have_both_answers(
    items: int, hard_in_both: float
) -> None:
    """Items that are hard as Yes rows are hard as No rows, too, or easy there: as if independent, an interval of d' and
    balanced accuracy covers 82 to 86 % in the first case, and one of c 86 to 90 % in the second."""
    rng = np.random.default_rng(items)
    z = stats.norm.ppf([0.9, 0.1])
    truths = {"d'": z[0] - z[1], "c": 0.0, "balanced": 0.9}
    covered = dict.fromkeys(truths, 0)
    for _ in range(400):
        common = rng.normal(size=(items, 2)) @ np.linalg.cholesky([[1, hard_in_both], [hard_in_both, 1]]).T
        yes, no = (0.6**0.5 * common[:, [k]] + 0.4**0.5 * rng.normal(size=(items, 9)) < z[0] for k in (0, 1))
        said = yes.astype(float), 1.0 - no
        found = {
            "d'": signal_detection.d_prime_intervals(*said),
            "c": signal_detection.criterion_intervals(*said),
            "balanced": signal_detection.balanced_intervals(said[0], 1 - said[1]),
        }
        for name, measured in found.items():
            covered[name] += measured.overall.low <= truths[name] <= measured.overall.high
    for name, count in covered.items():
        truth_or_fail(count / 400, 0.905, 0.995, name)


@pytest.mark.parametrize("items, alarms", [(30, 0.01), (100, 0.005), (300, 0.001)])
def test_differences_of_d_prime_and_criterion_cover_the_truth_where_a_sample_has_no_false_alarm(
    items: int, alarms: float
) -> None:
    """Items alike in all their cells: every third to second pair has a result without any. As if the jackknife knew of
    the correction of zero what it is worth, intervals covered 87 to 93 %."""
    rng, edges = np.random.default_rng(items), stats.norm.ppf([0.75, alarms])
    covered, without = {"d'": 0, "c": 0}, 0
    for _ in range(400):
        sides = []
        for edge in edges:
            before = noise(rng, items, 0.9)
            after = 0.8 * before + 0.6 * noise(rng, items, 0.9)
            sides.append([(z < edge).astype(float) for z in (before, after)])
        first, second = zip(*sides, strict=True)
        without += min(first[1].sum(), second[1].sum()) == 0
        for name, measure in (
            ("d'", signal_detection.d_prime_difference),
            ("c", signal_detection.criterion_difference),
        ):
            interval = measure(first, second)
            covered[name] += interval.low <= 0 <= interval.high
    truth_or_fail(without / 400, 0.2, 0.7, "pairs without a false alarm")
    for name, count in covered.items():
        truth_or_fail(count / 400, 0.93, 0.999, name)


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("d_prime", [2.56, 4.5])
def test_auc_and_accuracy_at_a_matched_no_rate_cover_the_truth(items: int, d_prime: float) -> None:
    """At d' 4.5 the AUC is .9993 and some samples have hardly a pair out of order."""

    def of(measure: Callable[..., Any], cell: bool, truth: float) -> Any:
        def draw(rng: np.random.Generator) -> Any:
            measured = measure(d_prime / 2 + noise(rng, items), -d_prime / 2 + noise(rng, items))
            return measured.cells[4] if cell else measured.overall, truth

        return draw

    def matched(yes: np.ndarray, no: np.ndarray) -> Any:
        return thresholds.yes_accuracy_at_no_rate(yes, no).accuracy

    auc, hits = stats.norm.cdf(d_prime / 2**0.5), stats.norm.cdf(d_prime - stats.norm.ppf(0.9))
    for cell in (False, True):
        where = "one cell" if cell else "overall"
        truth_or_fail(coverage(of(signal_detection.auc_intervals, cell, auc), 300, 6), 0.9, 1.0, f"AUC, {where}")
        truth_or_fail(coverage(of(matched, cell, hits), 300, 7), 0.9, 0.995, f"matched No rate, {where}")


@pytest.mark.parametrize("items", [10, 30])
def test_t_over_few_items_covers_the_truth_where_a_bootstrap_does_not(items: int) -> None:
    """Skewed shares between 0 and 1, as occlusion and flow have them."""
    rng = np.random.default_rng(8)
    truth = float(np.clip(rng.beta(1.5, 0.8, size=(200_000, 1)) + 0.1 * rng.normal(size=(200_000, 9)), 0, 1).mean())

    def draw(rng: np.random.Generator) -> Any:
        shares = np.clip(rng.beta(1.5, 0.8, size=(items, 1)) + 0.1 * rng.normal(size=(items, 9)), 0, 1)
        return st.mean_over_items(shares).overall, truth

    truth_or_fail(coverage(draw, 1000, seed=9), 0.925, 0.97, "t over items")


@pytest.mark.parametrize("apart", [0.0, 0.05, 0.3])
def test_two_way_t_covers_the_truth_however_much_seeds_differ(apart: float) -> None:
    def draw(rng: np.random.Generator) -> Any:
        seeds, items = rng.normal(size=(5, 1)) * apart, rng.normal(size=(1, 100)) * 0.2
        return st.mean_over_seeds_and_items(1 + seeds + items + 0.3 * rng.normal(size=(5, 100))), 1.0

    truth_or_fail(coverage(draw, 1000, seed=10), 0.92, 0.985, f"seeds differ by {apart}")


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("kind", ["normal", "rows"])
def test_size_of_the_tests_of_a_position_effect(items: int, kind: str) -> None:
    """At the 5 % level; the permutation null needs cells that are exchangeable, Hotelling's T^2 does not."""
    rng = np.random.default_rng(items)
    rejected = {"Hotelling": 0, "permutation": 0, "Cochran": 0}
    replicates = 300
    for _ in range(replicates):
        margins = noise(rng, items, kind=kind)
        rejected["Hotelling"] += nulls.hotelling(margins).p <= 0.05
        correct = (margins < 1.28).astype(float)
        rejected["permutation"] += st.permutation_null(correct, 199, 0).sd.p <= 0.05
        test = st.cochran_q(correct)
        rejected["Cochran"] += test is not None and test.p <= 0.05
    truth_or_fail(rejected["Hotelling"] / replicates, 0.02, 0.085, "Hotelling")
    truth_or_fail(rejected["permutation"] / replicates, 0.015, 0.085 if kind == "normal" else 0.16, "permutation")
    truth_or_fail(rejected["Cochran"] / replicates, 0.015, 0.085 if kind == "normal" else 0.16, "Cochran's Q")


def test_the_normal_limit_of_the_null_is_the_null(monkeypatch: pytest.MonkeyPatch) -> None:
    table = 0.4 * np.arange(9) / 9 + noise(np.random.default_rng(11), 400)
    exact = st.permutation_null(table, 4000, 0)
    monkeypatch.setattr(nulls, "NORMAL_LIMIT", 10)
    limit = st.permutation_null(table, 4000, 1)
    assert limit.sd.expected == pytest.approx(exact.sd.expected, rel=0.02)
    assert limit.gap.high == pytest.approx(exact.gap.high, rel=0.03)


@pytest.mark.parametrize("items", [100, 300])
def test_holm_keeps_the_family_at_five_percent(items: int) -> None:
    rng = np.random.default_rng(items)
    some = corrected = 0
    for _ in range(200):
        pairs = [(coins(rng, items, 0.9, 0.5), coins(rng, items, 0.9, 0.5)) for _ in range(2)]
        p = [st.mcnemar(a, b).p for first, second in pairs for a, b in zip(first.T, second.T, strict=True)]
        some += min(p) <= 0.05
        corrected += min(st.holm(p)) <= 0.05
    assert some / 200 >= 0.2  # without correction some cell of 18 differs much more often
    assert corrected / 200 <= 0.08


@pytest.mark.parametrize("items", SIZES)
def test_failures_that_do_not_depend_on_the_position_are_not_reported(items: int) -> None:
    rng = np.random.default_rng(items)
    found = seen = 0
    for _ in range(200):
        table = coins(rng, items, 0.9, 0.5)
        table[rng.random((items, 9)) < 0.03] = np.nan
        test = st.failures_by_position(table, np.zeros((items, 9)))
        found += test is not None and test.p <= 0.05
        table[:, 4] = np.where(rng.random(items) < 0.3, np.nan, table[:, 4])
        seen += st.failures_by_position(table, np.zeros((items, 9))).p <= 0.05
    truth_or_fail(found / 200, 0.005, 0.09, "size")
    assert seen / 200 >= 0.95


def test_an_effective_size_lies_between_its_floor_and_the_rows() -> None:
    rng = np.random.default_rng(12)
    table = coins(rng, 50, 0.8, 0.95)
    table[:25, 1:] = np.nan
    floor = intervals.effective_floor((~np.isnan(table)).sum(axis=1))
    assert floor == pytest.approx(250**2 / (25 + 25 * 81))
    assert floor <= intervals.effective_size(table, 0.8, 0.16) <= 250


def test_the_jackknife_of_means_is_the_plain_standard_error() -> None:
    table = noise(np.random.default_rng(13), 20)
    assert of_means(table) == pytest.approx(table)


@pytest.mark.parametrize("items", SIZES)
def test_lambda_by_position_needs_answers_that_changed(items: int) -> None:
    """Margins that are logistic, a moved threshold and no interaction in the odds: few answers change in each cell."""
    rng = np.random.default_rng(items)
    said = []
    for _ in range(400):
        before = noise(rng, items)
        after = (before + 0.2 * noise(rng, items)) / np.sqrt(1.04)
        tables = [(special.logit(stats.norm.cdf(z)) > -2 - k / 2).astype(float) for k, z in enumerate((before, after))]
        test = regression.method_by_position(*tables)
        said.append(np.nan if test is None else test.p <= 0.05)
    tested = np.isfinite(said)
    if items == 30:
        assert tested.mean() < 0.1
    else:
        truth_or_fail(float(np.nanmean(said)), 0.005, 0.085, f"lambda x position, {tested.sum()} tests")
