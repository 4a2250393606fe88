"""How far a result can be trusted. One file per concept; regression, planning and equivalence are imported by name.

Distributions and ranks are scipy's. What scipy lacks and statsmodels has (Holm, Cochran's Q, GEE, TOST) is a few lines
of closed form here, and the tests compare each with statsmodels: importing that takes 0.3 s and 64 MiB more than scipy
(2026-11-27), which every `agci metrics` would pay, and its GEE loops over the items.

A table is an array [items, cells] of floats: one value per item and cell, NaN where a row is missing. The rows of one
item share their images and caption, so they are not independent: items are what is counted, deleted or drawn.
"""

from transformers_agci.statistics.intervals import (
    CONFIDENCE,
    NO_DATA,
    Floats,
    Interval,
    Measured,
    cell_means,
    cell_proportions,
    clustered_proportion,
    mean_over_items,
    mean_over_seeds_and_items,
    wilson,
)
from transformers_agci.statistics.nulls import (
    Spread,
    SpreadTest,
    TestResult,
    cochran_q,
    deviation,
    failures_by_position,
    gap,
    hotelling,
    permutation_null,
)
from transformers_agci.statistics.paired import (
    McNemar,
    Resampled,
    agresti_min,
    bootstrap,
    holm,
    mcnemar,
    paired_difference,
    percentile_interval,
    proportion_difference,
    simultaneous_differences,
)
from transformers_agci.statistics.signal_detection import balanced_accuracy, criterion, d_prime

__all__ = [
    "CONFIDENCE",
    "NO_DATA",
    "Floats",
    "Interval",
    "McNemar",
    "Measured",
    "Resampled",
    "Spread",
    "SpreadTest",
    "TestResult",
    "agresti_min",
    "balanced_accuracy",
    "bootstrap",
    "cell_means",
    "cell_proportions",
    "clustered_proportion",
    "cochran_q",
    "criterion",
    "d_prime",
    "deviation",
    "failures_by_position",
    "gap",
    "holm",
    "hotelling",
    "mcnemar",
    "mean_over_items",
    "mean_over_seeds_and_items",
    "paired_difference",
    "percentile_interval",
    "permutation_null",
    "proportion_difference",
    "simultaneous_differences",
    "wilson",
]
