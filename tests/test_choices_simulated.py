"""Intervals of all cells at once, and of what a choice is worth that every fold repeats, on samples of known truth."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated_answers import SIZES, noise, tables, truth_or_fail

from transformers_agci import statistics as st
from transformers_agci.experiments.defaults import Choice
from transformers_agci.experiments.position import sweep
from transformers_agci.experiments.position.results import ProbeResult
from transformers_agci.statistics import nested_folds

pytestmark = pytest.mark.slow
ROWS = np.repeat([0.6, 0.0, -0.6], 3)
CHANGES = {
    "nothing": (np.zeros(9), np.zeros(9)),
    "threshold up": (ROWS, ROWS + 0.6),
    "threshold down": (ROWS, ROWS - 1.0),
    "one cell": (np.r_[np.zeros(8), -1.2], np.zeros(9)),
    "one cell and the threshold": (np.r_[np.zeros(8), -1.2], np.full(9, 0.6)),
}
# Length of all cells' intervals against single cells': 1.41 is the quantile of nine independent cells against that of
# one; they are longer where few answers changed, being hulls of two intervals of different shape. Measured: at most
# 2.10, 1.76 and 1.56.
WIDEST = {30: 2.2, 100: 1.85, 300: 1.65}


@pytest.mark.parametrize("items", SIZES)
@pytest.mark.parametrize("within", [0.0, 0.8])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_intervals_of_all_cells_at_once_hold_all_truths(items: int, within: float, change: Any) -> None:
    """Nine intervals of 95 % each hold all truths in two thirds of the samples."""
    rng, held, alone, replicates, wider = np.random.default_rng(items), 0, 0, 200, []
    truth = np.subtract(*(stats.norm.cdf(1.0 + lean) for lean in change[::-1]))
    for _ in range(replicates):
        before, fresh = noise(rng, items, within), noise(rng, items, within)
        after = 0.9 * before + 0.19**0.5 * fresh
        first, second = ((z < 1.0 + lean).astype(float) for z, lean in zip((before, after), change, strict=True))
        together = st.simultaneous_differences(first, second, draws=4000)
        single = st.proportion_difference(first, second).cells
        held += all(cell.low <= true <= cell.high for cell, true in zip(together, truth, strict=True))
        alone += all(cell.low <= true <= cell.high for cell, true in zip(single, truth, strict=True))
        assert all(a.low <= b.low < b.high <= a.high for a, b in zip(together, single, strict=True))
        lengths = (sum(cell.high - cell.low for cell in cells) for cells in (together, single))
        wider.append(next(lengths) / next(lengths))
    truth_or_fail(held / replicates, 0.92, 1.0, "all cells")
    assert np.mean(wider) < WIDEST[items]
    assert alone < held


def arms(rng: np.random.Generator, items: int, gains: list[float]) -> list[ProbeResult]:
    """Results of one model at several lambdas: margins with a common part; `gains` move both answers apart."""
    shared = [noise(rng, items) for _ in range(2)]
    found = []
    for number, gain in enumerate(gains):
        sides = [
            tables(sign * (1.28 + gain) + 0.9 * common + 0.19**0.5 * noise(rng, items), answer)
            for sign, answer, common in zip((1, -1), ("yes", "no"), shared, strict=True)
        ]
        names = tuple(str(item) for item in range(items))
        found.append(
            ProbeResult(f"r{number}", (3, 3), names, *sides, captions=tuple(f"thing {k}" for k in range(items)))
        )
    return found


ARMS = {
    "two, one a little better": [0.0, 0.06],
    "three alike": [0.0] * 3,
    "ten alike": [0.0] * 10,
    "ten a little apart": [0.01 * number for number in range(10)],
}
LONGEST = {40: 0.07, 100: 0.04, 300: 0.022}  # half an interval, a share: one arm settled beforehand has about half
CASES = [
    *((name, "balanced", items) for name in ("two, one a little better", "ten alike") for items in (40, 100, 300)),
    ("three alike", "evenness", 40),
    ("ten alike", "auc", 40),
    ("ten a little apart", "balanced", 100),
]


@pytest.mark.parametrize("name, choice, items", CASES)
def test_what_a_choice_is_worth_is_held_by_its_interval(
    name: str, choice: Choice, items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth is the mean gain of what the folds chose; the interval with the choices taken as settled holds it less
    often."""
    settled: list[st.Interval] = []

    def with_choices(gain: st.Interval, *given: Any) -> st.Interval:
        settled.append(gain)
        return nested_folds.with_choices(gain, *given)

    monkeypatch.setattr(sweep, "nested_folds", SimpleNamespace(**{**vars(nested_folds), "with_choices": with_choices}))
    rng, held, held_settled, replicates = np.random.default_rng(items + 7), 0, 0, 200
    truth = {f"r{number}": stats.norm.cdf(1.28 + gain) - stats.norm.cdf(1.28) for number, gain in enumerate(ARMS[name])}
    for _ in range(replicates):
        found = sweep.nested(arms(rng, items, ARMS[name]), choice)
        true = sum(truth[label] * size for label, size in zip(found.chosen, found.fold_items, strict=True)) / items
        held += found.gain.low <= true <= found.gain.high
        held_settled += settled[-1].low <= true <= settled[-1].high
        assert settled[-1].high - settled[-1].low <= found.gain.high - found.gain.low < 2 * LONGEST[items]
    truth_or_fail(held / replicates, 0.915, 1.0, "what the folds chose")
    assert held_settled < held and len(settled) == replicates
