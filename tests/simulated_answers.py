"""Noise, and the bound of an error rate, for the simulations in the tests."""

from collections.abc import Callable
from typing import Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.experiments.position.results import Tables

SIZES = [30, 100, 300]


def noise(rng: np.random.Generator, items: int, within: float = 0.5, kind: str = "normal") -> np.ndarray:
    """[items, 9] with variance 1 and correlation `within` between the cells of an item."""

    def draw(shape: Any) -> Any:
        return rng.normal(size=shape) if kind == "normal" else rng.standard_t(3, size=shape) / np.sqrt(3)

    if kind == "rows":  # cells of one row of the grid are nearly alike
        return 0.95 * np.repeat(rng.normal(size=(items, 3)), 3, axis=1) + 0.3 * rng.normal(size=(items, 9))
    return np.sqrt(within) * draw((items, 1)) + np.sqrt(1 - within) * draw((items, 9))


def truth_or_fail(rate: float, low: float, high: float, what: str) -> None:
    assert low <= rate <= high, f"{what}: {rate:.3f} is not between {low} and {high}"


def coverage(draw: Callable[[np.random.Generator], tuple[st.Interval, float]], replicates: int, seed: int) -> float:
    """How often an interval holds the truth."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(replicates):
        interval, truth = draw(rng)
        assert interval.high > interval.low
        covered += interval.low <= truth <= interval.high
    return covered / replicates


def tables(margins: np.ndarray, answer: str) -> Tables:
    said = np.where(np.isnan(margins), np.nan, margins > 0)
    return Tables(said if answer == "yes" else 1 - said, said, 0 * said, margins)
