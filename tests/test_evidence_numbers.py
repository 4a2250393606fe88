"""The tests of agci evidence against statsmodels or by hand: regressions, calibration, equivalence."""

import numpy as np
import pytest
from evidence_rows import as_tables, margins
from scipy import special, stats
from statsmodels.genmod.cov_struct import Independence
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE
from statsmodels.stats.weightstats import ttost_paired

from transformers_agci import statistics as st
from transformers_agci.experiments.position.calibration import calibration
from transformers_agci.statistics import regression
from transformers_agci.statistics.equivalence import equivalence


def test_wald_is_that_of_a_regression_with_clusters() -> None:
    """statsmodels' GEE with a parameter per result and cell; our covariance has n - 1 where the sandwich has n."""
    first, second = ((margins(60, seed, 0.3, mean=0.5, cells=4) > 0) * 1.0 for seed in (3, 4))
    ours = regression.method_by_position(first, second)
    y, x, groups = [], [], []
    for item in range(60):
        for result, table in enumerate((first, second)):
            for cell in range(4):
                row = np.zeros(8)
                row[4 * result + cell] = 1
                y.append(table[item, cell])
                x.append(row)
                groups.append(item)
    fit = GEE(np.array(y), np.array(x), np.array(groups), family=Binomial(), cov_struct=Independence()).fit()
    contrasts = np.zeros((3, 8))
    for k in range(3):
        contrasts[k, [k, 3, 4 + k, 7]] = [-1, 1, 1, -1]
    statistic = float(np.asarray(fit.wald_test(contrasts, scalar=True).statistic))
    assert ours.statistic == pytest.approx(statistic * 59 / 60, rel=1e-6)
    assert ours.freedom == (3, 57)


def test_odds_ratio_of_yes_and_truth_is_that_of_a_regression() -> None:
    tables = [[(margins(50, 10 * k + j, mean=m) > 0) * 1.0 for j, m in enumerate((0.8, -0.8))] for k in (1, 2)]
    shift, truth = regression.method_by_truth(tuple(tables[0]), tuple(tables[1]))
    y = np.concatenate([t.ravel() for pair in tables for t in pair])
    result, answer = np.repeat([0, 0, 1, 1], 450), np.repeat([0.5, -0.5, 0.5, -0.5], 450)
    x = np.stack([np.ones(1800), result, answer, result * answer], axis=1)
    fit = GEE(y, x, np.tile(np.repeat(np.arange(50), 9), 4), family=Binomial(), cov_struct=Independence()).fit()
    assert (shift.estimate, truth.estimate) == pytest.approx((fit.params[1], fit.params[3]), abs=1e-6)
    half = stats.t.ppf(0.975, 49) * fit.bse[3] * np.sqrt(50 / 49)
    assert truth.high - truth.estimate == pytest.approx(half, rel=1e-6)


def test_reliability_by_hand() -> None:
    """sigma(2) = .88 twice as a Yes row's and as a No row's (1 - .12), .52 of one row of either answer; 40 times."""
    yes, no = (
        as_tables(np.tile(table, (40, 1)), answer)
        for table, answer in (([[2.0, 0.1], [2.0, np.nan]], True), ([[-2.0, 0.1], [-2.0, 0.0]], False))
    )
    found = calibration(yes, no)
    assert [of_bin.share.n for of_bin in found.curve] == [80, 120, 80]
    assert [of_bin.share.estimate for of_bin in found.curve] == pytest.approx([0, 1 / 3, 1])
    middle = special.expit([0.1, 0.1, 0.0]).mean()
    assert [of_bin.probability for of_bin in found.curve] == pytest.approx(
        [special.expit(-2), middle, special.expit(2)]
    )
    assert calibration(yes, None) is None


@pytest.mark.parametrize("items", [2, 15, 400])
def test_bins_of_few_rows_are_joined(items: int) -> None:
    """So that the curve of few items, each right at the rate that sigma says, does not go up and down by chance."""
    rng = np.random.default_rng(items)
    margin = rng.normal(0, 2, (items, 18))
    is_yes = rng.random(margin.shape) < special.expit(margin)
    curve = calibration(
        as_tables(np.where(is_yes, margin, np.nan)), as_tables(np.where(is_yes, np.nan, margin), False)
    ).curve
    assert sum(of_bin.share.n for of_bin in curve) == margin.size
    widths = [of_bin.share.high - of_bin.share.low for of_bin in curve]
    shares = [of_bin.share.estimate for of_bin in curve]
    assert len(curve) == {2: 2, 15: 8, 400: 10}[items] and max(widths) <= 0.4
    assert shares == sorted(shares)


def test_the_interval_of_a_brier_score_stays_within_its_range() -> None:
    """One of three items is wrong throughout: the t interval would reach below 0 and above 1."""
    right = np.array([[9.0], [9.0], [-9.0]]) * np.ones((1, 2))
    found = calibration(as_tables(right), as_tables(-right, False)).brier
    assert found.estimate == pytest.approx(1 / 3, abs=1e-3) and (found.low, found.high) == (0, 1)


@pytest.mark.parametrize(("margin", "wrong", "gap"), [(5.0, 0.25, 0.243), (np.log(4), 0.2, 0.0)])
def test_surer_than_right(margin: float, wrong: float, gap: float) -> None:
    """Equally sure of every answer: the gap is that confidence less the share that is right, for both words alike."""
    signs = np.where(np.arange(100) < 100 * wrong, -1.0, 1.0)[:, None] * np.ones((1, 2))
    found = calibration(as_tables(margin * signs), as_tables(-margin * signs, False))
    assert found.gap.estimate == pytest.approx(gap, abs=1e-3)
    assert [cell.estimate for cell in found.cells] == pytest.approx([gap, gap], abs=1e-3)


def test_equivalence_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=40), rng.normal(size=40)
    change = st.mean_over_items((b - a)[:, None]).overall
    p = ttost_paired(b, a, -0.7, 0.7)[0]
    found = equivalence(change, 0.7, 39)
    assert found.p == pytest.approx(p) and found.shown == (p <= 0.05)
    assert equivalence(st.Interval(0, np.nan, np.nan, 1), 0.7, 0) is None
