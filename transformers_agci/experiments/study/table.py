"""The study's table: what fine-tuning with and without AGCI did, with intervals over seeds and items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_agci.experiments.position.results import ProbeResult, read_results
from transformers_agci.experiments.study.run import LAMBDAS, Study
from transformers_agci.statistics import Floats, Interval, deviation, gap, percentile_interval, permutation_null
from transformers_agci.storage.atomic import write_atomic

RESAMPLES = 2000
SEED = 0  # of the resampling


@dataclass(frozen=True)
class Models:
    """Several models' answers to the same questions: right (1) or wrong (0), [models, items, cells] each."""

    yes: Floats
    no: Floats


Measure = Callable[[Models], float]


def balanced(models: Models) -> float:
    """Mean of the Yes and the No accuracy, percent."""
    return float(50 * (models.yes.mean() + models.no.mean()))


def yes_accuracy(models: Models) -> float:
    """Percent."""
    return float(100 * models.yes.mean())


def no_accuracy(models: Models) -> float:
    """Percent."""
    return float(100 * models.no.mean())


def yes_deviation(models: Models) -> float:
    """Standard deviation over the cells of a model's Yes map, points; the mean over the models."""
    return float(100 * deviation(models.yes.mean(axis=1)).mean())


def yes_gap(models: Models) -> float:
    """Largest minus smallest cell of a model's Yes map, points; the mean over the models."""
    return float(100 * gap(models.yes.mean(axis=1)).mean())


MEASURES: dict[str, Measure] = {
    "balanced": balanced,
    "Yes": yes_accuracy,
    "No": no_accuracy,
    "sd over Yes cells": yes_deviation,
    "gap of Yes cells": yes_gap,
}
WITH_CHANCE = ("sd over Yes cells", "gap of Yes cells")


class WrittenTable(NamedTuple):
    """The table as Markdown, and the file that holds it."""

    text: str
    file: Path


def write_table(study: Study) -> WrittenTable:
    """Write `table_of` a finished study to study.md in its folder."""
    written = WrittenTable(table_of(study), study.folder / "study.md")
    write_atomic(written.file, (written.text + "\n").encode())
    return written


def table_of(study: Study) -> str:
    """Markdown: a row per condition, then the paired differences."""
    plain = {lam: _models(study, [None], lam) for lam in LAMBDAS}
    tuned = {lam: _models(study, list(range(study.seeds)), lam) for lam in LAMBDAS}
    off, on = LAMBDAS
    conditions = [(f"as it was, lambda {lam:g}", plain[lam]) for lam in LAMBDAS]
    conditions += [(f"fine-tuned and probed at lambda {lam:g}", tuned[lam]) for lam in LAMBDAS]
    differences = [
        (f"fine-tuned: lambda {on:g} - lambda {off:g}", tuned[off], tuned[on]),
        (f"as it was: lambda {on:g} - lambda {off:g}", plain[off], plain[on]),
        (f"lambda {off:g}: fine-tuned - as it was", plain[off], tuned[off]),
        (f"lambda {on:g}: fine-tuned - as it was", plain[on], tuned[on]),
    ]
    head = ["", *MEASURES]
    rows = [[name, *_levels(models)] for name, models in conditions]
    changes = [[name, *_changes(first, second)] for name, first, second in differences]
    per_seed = [
        f"seed {seed}: {balanced(_one(tuned[on], seed)) - balanced(_one(tuned[off], seed)):+.1f}"
        for seed in range(study.seeds)
    ]
    return "\n\n".join(
        [
            _markdown(head, rows),
            _markdown(["paired difference", *MEASURES], changes),
            f"Balanced accuracy, lambda {on:g} - lambda {off:g}, by seed: {', '.join(per_seed)}.",
        ]
    )


def _models(study: Study, seeds: Sequence[int | None], lam: float) -> Models:
    """The answers of the models of these seeds, their items in the first one's order."""
    results = [read_results(study.answers(seed, lam)) for seed in seeds]
    tables = [_tables(result.select(results[0].items)) for result in results]
    return Models(*(np.stack(part) for part in zip(*tables, strict=True)))


def _tables(result: ProbeResult) -> tuple[Floats, Floats]:
    assert result.yes is not None and result.no is not None
    return result.yes.correct, result.no.correct


def _one(models: Models, number: int) -> Models:
    return Models(models.yes[[number]], models.no[[number]])


def _drawn(models: Models, seeds: np.ndarray, items: np.ndarray) -> Models:
    """The models and items of one resample; a single model stands for every seed."""
    chosen = seeds if len(models.yes) > 1 else np.zeros(1, dtype=int)
    return Models(models.yes[chosen][:, items], models.no[chosen][:, items])


def _resampled(measure: Callable[..., float], *groups: Models) -> Interval:
    """A measure of groups of models with its interval: seeds and items are drawn with replacement, both together.

    The same draw serves every group: what is computed from two groups is paired by seed and by item.
    """
    rng = np.random.default_rng(SEED)
    seeds, items = max(len(group.yes) for group in groups), groups[0].yes.shape[1]
    draws = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn_seeds, drawn_items = rng.integers(seeds, size=(seeds,)), rng.integers(items, size=(items,))
        draws[number] = measure(*(_drawn(group, drawn_seeds, drawn_items) for group in groups))
    return percentile_interval(draws, measure(*groups), seeds * items)


def _levels(models: Models) -> list[str]:
    cells = []
    for name, measure in MEASURES.items():
        if name in WITH_CHANCE:
            # Resampling adds noise of its own to a spread, so that its level is shown beside chance, not an interval.
            tests = [permutation_null(table) for table in models.yes]
            chance = [test.sd if name == WITH_CHANCE[0] else test.gap for test in tests]
            ps = sorted(spread.p for spread in chance)
            p = f"p = {ps[0]:.2g}" if len(ps) == 1 else f"p from {ps[0]:.2g} to {ps[-1]:.2g}"
            cells.append(f"{measure(models):.1f} (by chance {100 * np.mean([c.expected for c in chance]):.1f}, {p})")
        else:
            found = _resampled(measure, models)
            cells.append(f"{found.estimate:.1f} ({found.low:.1f} to {found.high:.1f})")
    return cells


def _changes(first: Models, second: Models) -> list[str]:
    cells = []
    for measure in MEASURES.values():
        found = _resampled(lambda a, b, measure=measure: measure(b) - measure(a), first, second)
        cells.append(f"{found.estimate:+.1f} ({found.low:+.1f} to {found.high:+.1f})")
    return cells


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
