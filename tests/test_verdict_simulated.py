"""What is said about evenness on results made to deceive: no more than threshold, scale or sensitivity has changed.

The position's effect is the same in both results of every scenario, in sd within a cell. At most 8 % of the verdicts
may be "more even" or "less even", with margins, from the answers alone, and from Yes rows alone.
"""

from typing import Any, get_args

import numpy as np
import pytest

from transformers_agci.experiments.position.pair_evenness import compare_evenness
from transformers_agci.experiments.position.results import Tables
from transformers_agci.statistics.evenness import Verdict

pytestmark = pytest.mark.slow
ROWS = np.repeat([1.0, 0.0, -1.0], 3) * np.sqrt(1.5)  # a bias of sd 1 over nine cells
ONE = np.r_[-8.0, np.ones(8)] / np.sqrt(8)  # the same, in one cell only
REPLICATES = 80

NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "tails of t(2.2)": lambda rng, shape: rng.standard_t(2.2, size=shape) / np.sqrt(11),
    "skewed to Yes": lambda rng, shape: rng.exponential(size=shape) - 1,
    "skewed to No": lambda rng, shape: 1 - rng.exponential(size=shape),
    "bounded": lambda rng, shape: (rng.random(shape) - 0.5) * np.sqrt(12),
}


def results(
    rng: np.random.Generator,
    items: int,
    *,
    bias: float = 0.3,
    lean: Any = ROWS,
    mean: float = 1.28,
    shift: float = 0.6,
    scale: float = 1.0,
    gain: float = 0.0,
    noise: str = "normal",
    alike: float = 0.9,
    cells: float = 1.0,
    sizes: float = 0.0,
    own: float = 0.0,
    step: float = 0.0,
    bound: Any = np.inf,
    missing: float = 0.0,
    short: float = 0.0,
    wrong_missing: float = 0.0,
    leaning: tuple[float, float] = (0.0, 0.0),
    right: Any = 0.0,
) -> Any:
    """[(first, second)] margins of Yes rows and of No rows, [items, 9].

    cells, sizes   noise differs by cell (factors) and by item (sd of its logarithm)
    own            sd of the items' own share in the bias
    step, bound    margins are rounded, and cut off
    missing, short, wrong_missing   shares of rows without result, of items with one row, of wrong rows without result
    leaning        of the threshold over the rows of cells, in the first and in the second result
    right          added to the margins of Yes rows, and taken from those of No rows, by cell
    """
    sides = []
    for sign in (1, -1):
        spread = np.exp(sizes * rng.normal(size=(items, 1))) * cells

        def draw(spread: Any = spread) -> Any:
            parts = (NOISES[noise](rng, (items, 1)), NOISES[noise](rng, (items, 9)))
            return np.sqrt(0.5) * (parts[0] + parts[1]) * spread

        bias_of_place = (sign > 0) * bias * lean * (1 + own * rng.normal(size=(items, 1)))
        before, fresh = draw(), draw()
        after = alike * before + np.sqrt(1 - alike**2) * fresh
        place = bias_of_place + sign * right
        pair = [
            sign * mean + place + leaning[0] * ROWS + before,
            scale * (sign * (mean + gain) + shift + place + leaning[1] * ROWS + after),
        ]
        if step:
            pair = [step * (margins / step).round() for margins in pair]
        gone = rng.random((items, 9)) < missing
        wrong = np.minimum(sign * pair[0], sign * pair[1]) < 0
        gone |= wrong & (rng.random((items, 9)) < wrong_missing)
        with_one_row = np.arange(items) < short * items
        gone |= with_one_row[:, None] & (np.arange(9) != rng.integers(9, size=(items, 1)))
        sides.append([np.where(gone, np.nan, np.clip(margins, -bound, bound)) for margins in pair])
    return sides


def tables(margins: np.ndarray, right: bool, with_margins: bool = True) -> Tables:
    said = np.where(np.isnan(margins), np.nan, margins > 0)
    return Tables(
        said if right else 1 - said, said, 0 * said, margins if with_margins else np.full_like(margins, np.nan)
    )


def verdicts(
    items: int, seed: int, kinds: tuple[str, ...] = ("margins", "answers", "Yes rows"), **truth: Any
) -> dict[str, dict[str, float]]:
    """Shares of the four verdicts, with margins, from answers only, from Yes rows with margins only."""
    rng, said = np.random.default_rng(seed), {kind: [] for kind in kinds}
    for _ in range(REPLICATES):
        pairs = results(rng, items, **truth)
        for kind, found in said.items():
            yes, no = (
                tuple(tables(margins, right, kind != "answers") for margins in pair)
                for pair, right in zip(pairs, (True, False), strict=True)
            )
            found.append(compare_evenness(yes, None if kind == "Yes rows" else no).verdict)
    return {kind: {word: found.count(word) / REPLICATES for word in get_args(Verdict)} for kind, found in said.items()}


DECEIVING = {
    "large bias": {"bias": 0.8, "shift": 1.0},
    "bias of one cell": {"bias": 0.5, "lean": ONE, "shift": 1.0},
    "threshold down": {"bias": 0.8, "shift": -1.5},
    "scale": {"bias": 0.5, "scale": 4.0},
    "small scale": {"bias": 0.5, "scale": 0.3, "shift": 0.0},
    "sensitivity up": {"bias": 0.5, "gain": 0.5, "shift": 0.0},
    "sensitivity down": {"bias": 0.5, "gain": -0.5, "shift": 0.0},
    "independent results": {"bias": 0.5, "alike": 0.0},
    "items of unequal spread": {"bias": 0.4, "sizes": 1.0},
    "cells of unequal spread": {"cells": np.linspace(0.5, 2, 9)},
    "cells of unequal spread, no bias": {"bias": 0.0, "cells": np.linspace(0.5, 2, 9)},
    "items with a bias of their own": {"own": 1.0},
    "ties": {"step": 0.5},
    "coarse ties": {"step": 4.0, "shift": 1.0},
    "cut off": {"bias": 0.4, "bound": 3.0},
    "hardly cut off": {"bias": 0.4, "bound": 3.7},
    "everything right": {"mean": 5.0},
    "some cells all right": {"mean": 2.6, "bias": 0.6},
    "missing rows": {"missing": 0.3},
    "items of one row": {"short": 0.5},
    "wrong rows missing": {"wrong_missing": 0.5},
    **{noise: {"noise": noise, "bias": 0.4} for noise in NOISES},
}


@pytest.mark.parametrize("items", [10, 20, 100, 300])
@pytest.mark.parametrize("truth", DECEIVING.values(), ids=DECEIVING)
def test_no_change_is_called_one_in_eight_percent_at_most(items: int, truth: dict[str, Any]) -> None:
    for kind, found in verdicts(items, seed=items, **truth).items():
        assert found["more even"] + found["less even"] <= 0.08, (kind, found)


def test_answers_of_many_items_with_bounded_margins_show_no_change() -> None:
    """d' of normal margins and d' of margins with the tails of t(3) were called less even in 18 % of these."""
    found = verdicts(1500, seed=0, kinds=("answers",), bias=0.4, noise="bounded")["answers"]
    assert found["more even"] + found["less even"] <= 0.08, found


@pytest.mark.parametrize("items", [100, 300])
@pytest.mark.parametrize("bias", [0.0, 0.3])
@pytest.mark.parametrize("leaning", [(0.1, 0.0), (0.15, 0.0), (0.2, 0.0), (0.5, 0.0), (0.0, 0.2)])
def test_a_threshold_that_leans_in_one_result_is_no_change_of_answers(
    items: int, bias: float, leaning: tuple[float, float]
) -> None:
    """No rows lean as Yes rows do, and no d' changes. With one rate of false alarms for all cells wherever No rows were
    not shown to differ, a lean of .1 that went was called more even in 70 % of 100 pairs of 300 items (bias .3)."""
    found = verdicts(items, seed=items, kinds=("answers",), bias=bias, shift=0.0, leaning=leaning)["answers"]
    assert found["more even"] + found["less even"] <= 0.08, found


def test_a_cell_without_a_mistake_does_not_hide_a_leaning_threshold() -> None:
    """No row of that cell is wrong, and it has no d'; the other eight are compared, false alarms and all."""
    truth = {"bias": 0.0, "mean": 1.0, "shift": 0.0, "leaning": (0.6, 0.0), "right": np.r_[0, 0, 0, 3.5, np.zeros(5)]}
    found = verdicts(300, seed=0, kinds=("answers",), **truth)["answers"]
    assert found["more even"] + found["less even"] <= 0.08, found


@pytest.mark.parametrize("items", [5, 9])
def test_few_items_get_no_verdict_whatever_they_show(items: int) -> None:
    for found in verdicts(items, seed=items, bias=0.8).values():
        assert found["cannot tell"] == 1


def test_margins_say_something_about_most_of_these_at_100_items() -> None:
    """A verdict that never errs because it never speaks is none. Sensitivity changes one of the two units."""
    silent = {"sensitivity up", "sensitivity down"}
    for name, truth in DECEIVING.items():
        if "cut off" in name or name == "coarse ties":  # margins that end at a bound may be silent, and may not
            continue
        found = verdicts(100, seed=1, **truth)["margins"]
        assert (found["cannot tell"] > 0.3) == (name in silent), (name, found)
