"""Evenness over the cells: exact against slow versions, invariant where it must be, honest where nothing is known."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from transformers_agci.statistics import evenness as ev
from transformers_agci.statistics.matched_threshold import compare_at_one_threshold


def margins(items: int, seed: int, bias: float = 0.3, cells: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 1.3 + bias * np.linspace(1, -1, cells) + rng.normal(size=(items, 1)) + rng.normal(size=(items, cells))


def test_unevenness_is_the_mean_product_of_different_items() -> None:
    table = margins(7, seed=0)
    centred = table - table.mean(axis=1, keepdims=True)
    products = [centred[i] @ centred[j] / 9 for i, j in itertools.permutations(range(7), 2)]
    assert ev.unevenness(table) == pytest.approx(np.mean(products))


def test_unevenness_has_no_bias_where_the_plain_variance_has() -> None:
    estimates = [ev.unevenness(margins(20, seed, bias=0.0)) for seed in range(400)]
    plain = [margins(20, seed, bias=0.0).mean(axis=0).var() for seed in range(400)]
    assert abs(np.mean(estimates)) < 0.003
    assert np.mean(plain) > 0.03


@pytest.mark.parametrize(("noisy", "least", "most"), [(True, 0.85, 1.15), (False, 1.6, 2.2)])
def test_the_error_of_noise_alone(noisy: bool, least: float, most: float) -> None:
    """The jackknife counts twice what two items do together: where there is nothing else, its variance is double."""
    rng = np.random.default_rng(0)
    found = [ev.compare(*rng.normal(size=(2, 60, 9)), noisy=noisy) for _ in range(400)]
    errors = [(change.high - change.low) / 2 / stats.t.ppf(0.975, 59) for change in found]
    assert least < np.mean(np.square(errors)) / np.var([change.estimate for change in found]) < most


def test_the_error_of_what_differs_by_far_is_the_same_with_and_without_noise() -> None:
    rng = np.random.default_rng(1)
    bias = 3 * np.linspace(1, -1, 9)
    pair = rng.normal(size=(2, 200, 9)) + np.stack([bias, bias / 2])[:, None]
    widths = [change.high - change.low for change in (ev.compare(*pair, noisy=noisy) for noisy in (False, True))]
    assert widths[1] == pytest.approx(widths[0], rel=0.02) and widths[1] < widths[0]


def test_leave_one_out_is_the_same_as_leaving_one_out() -> None:
    table = margins(8, seed=1)
    assert ev.leave_one_out(table) == pytest.approx([ev.unevenness(np.delete(table, i, axis=0)) for i in range(8)])


def _standardized(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    squares = sum(((t - np.nanmean(t, axis=0)) ** 2)[~np.isnan(t)].sum() for t in (yes, no))
    freedom = sum((~np.isnan(t)).sum() - t.shape[1] for t in (yes, no))
    return np.nanmean(yes, axis=0) / np.sqrt(squares / freedom)


def _distances(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    return np.nanmean(yes, axis=0) / (np.nanmean(yes, axis=0).mean() - np.nanmean(no, axis=0).mean())


def _auc(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    def of_cell(y: np.ndarray, n: np.ndarray) -> float:
        pairs = [(a > b) + 0.5 * (a == b) for a in y[~np.isnan(y)] for b in n[~np.isnan(n)]]
        return np.mean(pairs)

    return np.array([of_cell(y, n) for y, n in zip(yes.T, no.T, strict=True)])


def _d_prime(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    rates = [((t > 0).sum(axis=0) + 0.5) / (len(t) + 1) for t in (yes, no)]
    return stats.norm.ppf(rates[0]) - stats.norm.ppf(rates[1])


@pytest.mark.parametrize(
    "measure, slow, gaps",
    [
        (ev.of_standardized_margins, _standardized, True),
        (ev.of_margins_by_distance, _distances, True),
        (ev.of_auc, _auc, True),
        (lambda yes, no: ev.of_d_prime((yes > 0) * 1.0, (no > 0) * 1.0), _d_prime, False),
    ],
)
def test_contributions_are_jackknife_pseudo_values(
    measure: Callable[..., Any], slow: Callable[..., Any], gaps: bool
) -> None:
    yes, no = margins(40, seed=2).round(1) - 0.5, margins(40, seed=3).round(1) - 2.0
    if gaps:
        yes[3, 2] = no[5, 0] = no[3, 2] = np.nan
        yes[9] = np.nan  # an item with No rows only
    deleted = [slow(np.delete(yes, i, axis=0), np.delete(no, i, axis=0)) for i in range(40)]
    expected = 40 * slow(yes, no) - 39 * np.array(deleted)
    np.testing.assert_allclose(measure(yes, no), expected, atol=1e-9)


@pytest.mark.parametrize("shift, scale", [(0.6, 1.0), (-2.0, 3.0), (0.0, 0.2)])
def test_a_shift_and_a_change_of_scale_are_no_change_of_evenness(shift: float, scale: float) -> None:
    yes, no = margins(50, seed=4), margins(50, seed=5) - 2.5
    moved = [scale * (table + shift) for table in (yes, no)]
    changes = [
        ev.compare(ev.of_standardized_margins(yes, no), ev.of_standardized_margins(*moved)),
        ev.compare(ev.of_margins_by_distance(yes, no), ev.of_margins_by_distance(*moved)),
        ev.compare(ev.of_auc(yes, no), ev.of_auc(*moved)),
    ]
    for change in changes[:1] + changes[2:]:
        assert change.estimate == pytest.approx(0, abs=1e-12)
        assert change.low < 0 < change.high  # and an interval that has a width
    assert changes[1].estimate == pytest.approx(0, abs=1e-12)
    assert ev.verdict(changes[0], changes[1], 50) == "no difference shown"


def test_added_noise_is_no_repair() -> None:
    """In units of its own sd a noisier result looks more even; in units of the distance of Yes and No it does not."""
    rng = np.random.default_rng(6)
    yes, no = margins(300, seed=7), margins(300, seed=8) - 2.5
    noisy = [table + 2 * rng.normal(size=table.shape) for table in (yes, no)]
    own = ev.compare(ev.of_standardized_margins(yes, no), ev.of_standardized_margins(*noisy))
    distance = ev.compare(ev.of_margins_by_distance(yes, no), ev.of_margins_by_distance(*noisy))
    assert own.direction == -1
    assert ev.verdict(own, distance, 300) == "cannot tell"


@pytest.mark.parametrize("before, after, said", [(0.3, 0.1, "more even"), (0.1, 0.3, "less even")])
def test_a_real_change_is_found(before: float, after: float, said: str) -> None:
    no = margins(300, seed=9, bias=0) - 2.5
    sides = [(margins(300, seed=seed, bias=bias), no) for seed, bias in ((10, before), (11, after))]
    own = ev.compare(*(ev.of_standardized_margins(*side) for side in sides))
    distance = ev.compare(*(ev.of_margins_by_distance(*side) for side in sides))
    assert ev.verdict(own, distance, 300) == said


def test_what_cannot_be_had_is_none_and_never_an_interval_without_width() -> None:
    ones = np.ones((50, 9))
    assert ev.of_standardized_margins(ones) is None
    assert ev.of_d_prime(ones, 1 - ones) is None
    assert ev.compare(ev.of_means(ones), ev.of_means(ones)) is None
    assert ev.compare(ev.of_auc(ones, 0 * ones), ev.of_auc(ones, 0 * ones)) is None
    assert ev.of_means(margins(1, seed=0)) is None
    assert ev.of_margins_by_distance(margins(50, seed=1), margins(50, seed=2)) is None  # Yes and No rows alike
    assert ev.verdict(None, None, 50) == "cannot tell"
    few = ev.compare(ev.of_means(margins(5, seed=0)), ev.of_means(margins(5, seed=1)))
    assert ev.verdict(few, few, 5) == "cannot tell"


def test_margins_that_end_at_a_bound_are_known() -> None:
    """Cut off at 3 sd or rounded to steps of 4, a shift is no shift any more; to steps of a half sd it still is."""
    table = margins(300, seed=20)
    assert not ev.are_cut_off(table) and not ev.are_cut_off((2 * table).round() / 2)
    assert ev.are_cut_off(np.minimum(table, 3.0)) and ev.are_cut_off(np.maximum(table, -1.0))
    assert np.mean(table > 4.6) < ev.EDGE_SHARE and ev.are_cut_off(np.minimum(table, 4.6))
    assert ev.are_cut_off(4 * (table / 4).round()) and ev.are_cut_off(np.ones((50, 9)))
    few = np.where(np.random.default_rng(21).random(table.shape) < 0.1, np.nan, table)
    assert not ev.are_cut_off(few)


def test_answers_at_one_threshold_are_equally_uneven_if_the_shape_is_right() -> None:
    """Rates of t(3)'s margins before and after a shift: normal d' calls them different, t(3)'s does not."""
    items, places = 400, np.linspace(0.5, 2.5, 9)

    def said(margin: np.ndarray) -> np.ndarray:
        """[items, 9]: item i says Yes in the cells whose rate is above i's quantile, so that rates are exact."""
        quantiles = np.random.default_rng(0).permuted(np.tile((np.arange(items)[:, None] + 0.5) / items, 9), axis=0)
        return (quantiles < stats.t(3).cdf(margin)).astype(float)

    no = said(np.full(9, -1.5)), said(np.full(9, -0.5))
    first, second = (said(places), no[0]), (said(places + 1), no[1])
    as_if_normal = ev.compare(ev.of_d_prime(*first), ev.of_d_prime(*second))
    right, too_heavy = (compare_at_one_threshold(first, second, tails) for tails in ("t(3)", "Cauchy"))
    assert as_if_normal.estimate < -0.05 and as_if_normal.direction == -1
    assert abs(right.estimate) < 0.01 and right.direction == 0
    assert too_heavy.estimate > 0
    back = compare_at_one_threshold(second, first, "t(3)")
    assert back.estimate == pytest.approx(-right.estimate)


def test_a_cell_has_a_d_prime_with_three_answers_of_each_kind() -> None:
    yes, no = np.zeros((10, 3)), np.zeros((10, 3))
    yes[:3, :2], no[:3] = 1, 1
    yes[3:, 1] = 1
    yes[:8, 2] = 1
    assert ev.cells_with_d_prime(yes, no).tolist() == [True, False, False]
