"""The statistics against slow obvious versions, scipy and statsmodels."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import cochrans_q
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from transformers_agci import statistics as st
from transformers_agci.statistics import distributions, paired, signal_detection
from transformers_agci.statistics.nulls import permuted_cell_means


def coins(items: int, p: float, seed: int, cells: int = 9) -> np.ndarray:
    return (np.random.default_rng(seed).random((items, cells)) < p).astype(float)


@pytest.mark.parametrize("hits, n", [(0, 5), (5, 5), (9, 10), (77, 100), (1, 10_000)])
def test_wilson_is_that_of_statsmodels(hits: int, n: int) -> None:
    assert st.wilson(hits, n)[1:3] == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-12)


def test_wilson_of_nothing_is_no_number() -> None:
    assert np.isnan(st.wilson(0, 0).low) and st.wilson(0, 0).n == 0


def test_cell_proportions_leave_out_missing_rows() -> None:
    table = np.array([[1, 0, np.nan], [1, 1, np.nan]])
    first, second, third = st.cell_proportions(table)
    assert (first.estimate, first.n) == (1.0, 2)
    assert second == st.wilson(1, 2)
    assert third.n == 0


def test_rows_of_one_mind_count_once_per_item() -> None:
    """Nine equal rows per item carry the information of one; independent rows that of (nearly) nine."""
    items = coins(200, 0.8, seed=1, cells=1)
    assert st.clustered_proportion(np.repeat(items, 9, axis=1))[1:3] == pytest.approx(
        st.wilson(items.sum(), 200)[1:3], abs=2e-3
    )
    table = coins(2000, 0.8, seed=2)
    assert st.clustered_proportion(table)[1:3] == pytest.approx(st.wilson(table.sum(), table.size)[1:3], abs=1e-3)


def test_clustered_interval_has_a_width_where_all_is_right() -> None:
    interval = st.clustered_proportion(np.ones((100, 9)))
    assert interval.n == 900 and interval.low == pytest.approx(st.wilson(100, 100).low)


def test_clustered_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    ease = rng.beta(8, 2, size=(400, 60))  # 400 experiments of 60 items, each with its own difficulty; mean 0.8
    covered = 0
    for items in ease:
        interval = st.clustered_proportion((rng.random((60, 9)) < items[:, None]).astype(float))
        covered += interval.low <= 0.8 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_null_equals_the_enumeration_of_all_shuffles() -> None:
    table = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.5, 0.25]])
    gaps, deviations = [], []
    for rows in itertools.product(*(itertools.permutations(row) for row in table)):
        means = [sum(column) / 3 for column in zip(*rows, strict=True)]
        gaps.append(max(means) - min(means))
        deviations.append(np.std(means))
    test = st.permutation_null(table, permutations=20_000, seed=0)
    assert test.gap.expected == pytest.approx(np.mean(gaps), abs=0.01)
    assert test.sd.expected == pytest.approx(np.mean(deviations), abs=0.01)
    assert test.gap.p == pytest.approx(np.mean(np.array(gaps) >= test.gap.observed - 1e-9), abs=0.01)


def test_null_keeps_missing_rows_missing() -> None:
    table = np.array([[1.0, 0.0, np.nan], [0.0, 1.0, 1.0], [np.nan, np.nan, 1.0]])
    means = permuted_cell_means(table, 500, seed=0)
    assert set(np.unique(means[:, 0])) == {0.0, 0.5, 1.0}
    assert set(np.unique(means[:, 2])) == {0.5, 1.0}
    np.testing.assert_allclose((means * [2, 2, 2]).sum(axis=1), np.nansum(table))


@pytest.mark.parametrize(("n", "points"), [(20, 19.1), (100, 8.8), (1000, 2.8), (10_000, 0.89)])
def test_expected_gap_without_bias(n: int, points: float) -> None:
    """docs/method.md, section 3: the gap that nine equal cells at 90 % show by chance."""
    draws = np.random.default_rng(0).binomial(n, 0.9, size=(20_000, 9)) / n
    independent = float(st.gap(draws).mean())
    repeats = 40 if n <= 100 else 3
    null = np.mean([st.permutation_null(coins(n, 0.9, seed), 100, seed).gap.expected for seed in range(repeats)])
    assert null == pytest.approx(independent, rel=0.04)
    assert 100 * null == pytest.approx(points, rel=0.05)


def test_null_is_calibrated_and_sees_a_bias() -> None:
    p_values = [st.permutation_null(coins(60, 0.9, seed), 199, seed).sd.p for seed in range(200)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)
    biased = coins(200, 0.95, seed=1)
    biased[:, 4] = coins(200, 0.75, seed=2)[:, 0]
    test = st.permutation_null(biased, 999)
    assert test.sd.p == test.gap.p == 0.001
    assert test.sd.observed > test.sd.high


def test_bootstrap_equals_the_obvious_loop() -> None:
    rng = np.random.default_rng(5)
    table = rng.normal(size=(30, 4))
    table[3, 2] = table[7, 0] = np.nan
    fast = st.bootstrap([table], 4000, seed=1)[0]
    slow = np.array([table[rng.integers(0, 30, 30)] for _ in range(4000)])
    np.testing.assert_allclose(fast.cells.mean(0), np.nanmean(slow, axis=(1)).mean(0), atol=0.02)
    np.testing.assert_allclose(fast.cells.std(0), np.nanmean(slow, axis=1).std(0), atol=0.02)
    assert fast.overall.std() == pytest.approx(np.nanmean(slow, axis=(1, 2)).std(), abs=0.01)


def test_bootstrap_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(6).normal(size=80)
    ours = st.bootstrap([values[:, None]], 9999, seed=0)[0].overall
    interval = st.percentile_interval(ours, values.mean(), 80)
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert interval[1:3] == pytest.approx(tuple(reference), abs=0.01)


def test_bootstrap_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = coins(50, 0.7, seed=8)
    whole = st.bootstrap([table], 100, seed=4)[0].sums
    monkeypatch.setattr(paired, "CHUNK_VALUES", 333)
    np.testing.assert_array_equal(st.bootstrap([table], 100, seed=4)[0].sums, whole)


def test_tables_of_one_bootstrap_share_their_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        st.bootstrap([np.ones((3, 9)), np.ones((4, 9))])


def test_pairing_narrows_the_difference() -> None:
    """A gain of some points on the same items: paired it is certain, unpaired it would drown in the items."""
    first = np.repeat(coins(100, 0.6, seed=9, cells=1), 9, axis=1)
    second = first.copy()
    second[(first[:, 0] == 0) & (np.arange(100) % 6 == 0)] = 1
    change = st.paired_difference(first, second)
    assert change.overall.estimate == pytest.approx(second.mean() - first.mean())
    assert change.overall.low > 0
    unpaired = st.clustered_proportion(first)
    assert unpaired.high - unpaired.low > 1.4 * (change.overall.high - change.overall.low)
    assert len(change.cells) == 9 and change.cells[0].n == 100


def test_equal_results_do_not_differ() -> None:
    table = coins(40, 0.9, seed=10)
    equal = st.proportion_difference(table, table).overall
    assert (equal.estimate, equal.n) == (0.0, 360) and equal.low == -equal.high < 0
    assert np.isnan(st.paired_difference(table, table).overall.low)  # a t interval of equal values is none


def test_paired_difference_uses_common_rows() -> None:
    first, second = coins(20, 0.5, seed=11), coins(20, 0.5, seed=12)
    second[0, 0] = np.nan
    assert st.paired_difference(first, second).overall.n == 179
    assert st.paired_difference(first, second).cells[0].n == 19


def test_d_prime_by_hand() -> None:
    """9 of 10 hits, 2 of 10 false alarms: z(9.5/11) - z(2.5/11)."""
    assert st.d_prime(0.9, 10, 0.2, 10) == pytest.approx(stats.norm.ppf(9.5 / 11) - stats.norm.ppf(2.5 / 11))
    assert st.d_prime(1.0, 100, 0.0, 100) == pytest.approx(2 * stats.norm.ppf(100.5 / 101))
    assert st.d_prime(0.7, 50, 0.7, 50) == pytest.approx(0)


def test_d_prime_does_not_move_with_the_threshold_but_accuracy_does() -> None:
    z = np.array([0.0, 0.5, 1.0])
    hits, alarms = stats.norm.cdf(1 + z), stats.norm.cdf(-1 + z)
    np.testing.assert_allclose(st.d_prime(hits, 10**7, alarms, 10**7), 2, atol=1e-4)
    assert np.ptp(hits) > 0.1


def test_balanced_accuracy_of_an_always_yes_model_is_a_half() -> None:
    assert st.balanced_accuracy(1.0, 0.0) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_that_of_statsmodels(seed: int) -> None:
    first, second = coins(60, 0.7, seed, cells=1)[:, 0], coins(60, 0.8, seed + 50, cells=1)[:, 0]
    counts = [[((first == a) & (second == b)).sum() for b in (1, 0)] for a in (1, 0)]
    result = st.mcnemar(first, second)
    assert result.p == pytest.approx(statsmodels_mcnemar(counts, exact=True).pvalue, abs=1e-12)
    assert (result.gained, result.lost) == (counts[1][0], counts[0][1])


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).random(7) ** 4
    p[1] = p[5]
    assert st.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-15)
    with_gap = st.holm([*p[:3], np.nan, *p[3:]])
    assert np.isnan(with_gap[3]) and with_gap[:3] + with_gap[4:] == st.holm(p)


def test_holm_by_hand() -> None:
    assert st.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert st.holm([0.9, 0.5]) == [1.0, 1.0]
    assert st.holm([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_cochran_is_that_of_statsmodels(seed: int) -> None:
    table = coins(40, 0.7, seed)
    found, known = st.cochran_q(table), cochrans_q(table)
    assert found is not None and found.freedom == (8,)
    assert (found.statistic, found.p) == pytest.approx((known.statistic, known.pvalue), rel=1e-10)


def test_mcnemar_without_a_change() -> None:
    assert st.mcnemar(np.ones(5), np.ones(5)) == (0, 0, 1.0)


def test_seeds_decide() -> None:
    table = coins(50, 0.9, seed=13)
    assert st.permutation_null(table, 100, 1) == st.permutation_null(table, 100, 1)
    assert st.permutation_null(table, 100, 1) != st.permutation_null(table, 100, 2)
    assert (st.bootstrap([table], 50, 1)[0].sums == st.bootstrap([table], 50, 1)[0].sums).all()


def test_a_result_without_a_false_alarm_leaves_the_difference_of_d_prime_unsure() -> None:
    """Its d' is mostly the correction of zero: one item that says Yes would take a third of a z from it."""
    rng = np.random.default_rng(0)
    yes = (rng.random((40, 9)) < 0.8).astype(float)
    no = np.zeros((40, 9))
    some = no.copy()
    some[0] = 1
    found = signal_detection.d_prime_difference((yes, no), (yes, some))
    moved = signal_detection.d_prime_intervals(yes, no).overall.estimate
    moved -= signal_detection.d_prime_intervals(yes, some).overall.estimate
    assert found.estimate == pytest.approx(-moved) and found.low < 0 < found.high
    assert found.high - found.low > 3 * moved


def test_distributions_at_their_ends_are_those_of_scipy() -> None:
    for value, freedom in [(-1.0, 8), (-1.0, 0), (3.0, 0), (0.0, 8), (3.0, 8), (float("nan"), 8)]:
        expected = stats.chi2.sf(value, freedom)
        assert distributions.chi2_above(value, freedom) == pytest.approx(expected, nan_ok=True)
    assert np.isnan(distributions.chi2_quantile(1, 0))
    assert np.isnan(distributions.t_quantiles([0, 0.5], 0)).all()
    for trials in (1, 10, 10**9, 10**12):
        for successes in (0, trials // 3, trials // 2, trials):
            expected = stats.binom.cdf(successes, trials, 0.5)
            assert distributions.even_binomial_share(successes, trials) == pytest.approx(expected, rel=1e-12)
