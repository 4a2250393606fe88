"""How far a score can be trusted: its interval, and the paired difference of two models on the same questions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Item, Score
from transformers_agci.statistics import Floats, Interval, McNemar, bootstrap, mcnemar, percentile_interval


class Difference(NamedTuple):
    """Second minus first: the headline's interval, and McNemar's test where answers are right or wrong."""

    headline: Interval
    test: McNemar | None


def headline_interval(benchmark: Benchmark, score: Score, resamples: int, seed: int) -> Interval:
    """The headline figure with its 95 % interval, images being what is resampled.

    Answers to questions about one image are not independent, so a resample takes all of an image's or none.
    """
    names, table = _cluster_sums(score.items)
    samples = _headline(benchmark, names, bootstrap([table], resamples, seed)[0].sums)
    return percentile_interval(samples, _point(benchmark, names, table), len(score.items))


def headline_difference(benchmark: Benchmark, first: Score, second: Score, resamples: int, seed: int) -> Difference:
    """Second minus first on the same questions, every resample taking the same images for both."""
    by_key = {item.key: item for item in second.items}
    if {item.key for item in first.items} != set(by_key):
        raise InputError("The two answer files are not to the same questions, so they have no paired difference.")
    pairs = [(item, by_key[item.key]) for item in first.items]
    names, tables = _aligned([a for a, _ in pairs], [b for _, b in pairs])
    drawn = bootstrap(tables, resamples, seed)
    samples = _headline(benchmark, names, drawn[1].sums) - _headline(benchmark, names, drawn[0].sums)
    change = _point(benchmark, names, tables[1]) - _point(benchmark, names, tables[0])
    test = None
    if all(a.binary and b.binary for a, b in pairs):
        test = mcnemar(np.array([a.score for a, _ in pairs]), np.array([b.score for _, b in pairs]))
    return Difference(percentile_interval(samples, change, len(pairs)), test)


def _headline(benchmark: Benchmark, names: Sequence[str], sums: Floats) -> Floats:
    """[resamples, parts] -> [resamples]; NaN where a resample has no row of a category."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(benchmark.scoring.headline_from(dict(zip(names, sums.T, strict=True))), dtype=float)


def _point(benchmark: Benchmark, names: Sequence[str], table: Floats) -> float:
    return float(_headline(benchmark, names, table.sum(axis=0, keepdims=True))[0])


def _aligned(first: Sequence[Item], second: Sequence[Item]) -> tuple[list[str], list[Floats]]:
    """The cluster sums of both, with the same rows (the first's clusters) and columns."""
    names = sorted({name for item in (*first, *second) for name in item.summed})
    clusters = list(dict.fromkeys(item.cluster for item in first))
    row = {cluster: number for number, cluster in enumerate(clusters)}
    tables: list[Floats] = []
    for items in (first, second):
        table = np.zeros((len(clusters), len(names)))
        for own, item in zip(first, items, strict=True):
            for name, value in item.summed.items():
                table[row[own.cluster], names.index(name)] += value
        tables.append(table)
    return names, tables


def _cluster_sums(items: Sequence[Item]) -> tuple[list[str], Floats]:
    """(parts, [clusters, parts]): what the items of each image add up to."""
    names, (table, _) = _aligned(items, items)
    return names, table
