"""The study's table: what fine-tuning with and without AGCI did, with intervals over seeds and items."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transformers_agci.errors import counted
from transformers_agci.experiments.position.results import ProbeResult, read_results
from transformers_agci.experiments.study.run import LAMBDAS, Study
from transformers_agci.report.forest import ForestPanel, forest_figure
from transformers_agci.report.heatmap import write_figure
from transformers_agci.report.table import Style, Table, markdown_table
from transformers_agci.statistics import (
    Floats,
    Interval,
    deviation,
    gap,
    mean_over_seeds_and_items,
    permutation_null,
    wilson,
)
from transformers_agci.statistics.evenness import contributions_to_unevenness
from transformers_agci.storage.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL, CHANGE = Style(digits=1), Style(digits=1, signed=True)


@dataclass(frozen=True)
class Models:
    """Several models' answers to the same questions: right (1) or wrong (0), [models, items, cells] each."""

    yes: Floats
    no: Floats


Measure = Callable[
    [Models], Floats
]  # -> what each model and item contributes, [models, items]; its mean is the measure


def balanced(models: Models) -> Floats:
    """Mean of the Yes and the No accuracy, percent."""
    return 50 * (models.yes.mean(axis=2) + models.no.mean(axis=2))


def yes_accuracy(models: Models) -> Floats:
    """Percent."""
    return 100 * models.yes.mean(axis=2)


def no_accuracy(models: Models) -> Floats:
    """Percent."""
    return 100 * models.no.mean(axis=2)


def yes_unevenness(models: Models) -> Floats:
    """Variance over the cells of a model's Yes map, points squared, without the part of chance."""
    contributions = [contributions_to_unevenness(100 * table) for table in models.yes]
    return np.stack(contributions)


ACCURACIES: dict[str, Measure] = {"balanced": balanced, "Yes": yes_accuracy, "No": no_accuracy}
UNEVENNESS = "variance over Yes cells (points^2, without bias)"
SPREADS = ("sd over Yes cells", "gap of Yes cells")


class Condition(NamedTuple):
    """Lambda in the training and in the evaluation; `trained` None: the model as it was."""

    trained: float | None
    evaluated: float

    def __str__(self) -> str:
        if self.trained is None:
            return f"as it was, probed at {self.evaluated:g}"
        return f"trained at {self.trained:g}, probed at {self.evaluated:g}"


OFF, ON = LAMBDAS
BEFORE = tuple(Condition(None, lam) for lam in LAMBDAS)
CROSSED = tuple(Condition(trained, evaluated) for trained in LAMBDAS for evaluated in LAMBDAS)
# What is compared -> the weight of each condition in it.
Contrast = Mapping[Condition, float]
CONTRASTS: Mapping[str, Contrast] = {
    "lambda in training (mean of both evaluations)": {
        Condition(ON, OFF): 0.5,
        Condition(ON, ON): 0.5,
        Condition(OFF, OFF): -0.5,
        Condition(OFF, ON): -0.5,
    },
    "lambda in evaluation (mean of both trainings)": {
        Condition(OFF, ON): 0.5,
        Condition(ON, ON): 0.5,
        Condition(OFF, OFF): -0.5,
        Condition(ON, OFF): -0.5,
    },
    "interaction (what the second does more after the first)": {
        Condition(ON, ON): 1,
        Condition(ON, OFF): -1,
        Condition(OFF, ON): -1,
        Condition(OFF, OFF): 1,
    },
    f"both: trained and probed at {ON:g} - at {OFF:g}": {Condition(ON, ON): 1, Condition(OFF, OFF): -1},
    "lambda in evaluation, before the training": {Condition(None, ON): 1, Condition(None, OFF): -1},
    f"training at {OFF:g}, probed at {OFF:g}": {Condition(OFF, OFF): 1, Condition(None, OFF): -1},
    f"training at {ON:g}, probed at {ON:g}": {Condition(ON, ON): 1, Condition(None, ON): -1},
}


@dataclass(frozen=True)
class StudyReport:
    """A finished study: levels of every condition, the paired differences, and the main one of each seed, in points."""

    folder: Path
    seeds: int
    items: int
    levels: Table
    changes: Mapping[str, Sequence[Interval]]  # of every contrast: the accuracies' and the unevenness's change
    by_seed: tuple[float, ...]

    @property
    def differences(self) -> Table:
        """The paired differences."""
        rows = [[name, *map(CHANGE.write, changes)] for name, changes in self.changes.items()]
        return Table("", ["paired difference", *ACCURACIES, UNEVENNESS], rows)

    @property
    def main_difference(self) -> str:
        """Balanced accuracy of both lambdas on against both off, seed by seed."""
        per_seed = ", ".join(f"seed {seed}: {change:+.1f}" for seed, change in enumerate(self.by_seed))
        return f"Balanced accuracy, trained and probed at {ON:g} - at {OFF:g}, by seed: {per_seed}."

    @property
    def text(self) -> str:
        """Markdown: a row per condition of the crossover, then the paired differences."""
        tables = [markdown_table(table.header, table.rows) for table in (self.levels, self.differences)]
        return "\n\n".join([*tables, self.main_difference])

    def figure(self) -> "Figure":
        """A forest plot: a line per paired difference, a panel per measure."""
        names = (*(f"{name}, points" for name in ACCURACIES), "variance over Yes cells,\npoints², without bias")
        panels = [
            ForestPanel(name, [row[k] for row in self.changes.values()], zero=True) for k, name in enumerate(names)
        ]
        note = f"{counted(self.seeds, 'seed')} x {self.items} items; lines: 95 % intervals over seeds and items"
        names_drawn = [name.replace(" - ", " − ") for name in self.changes]
        return forest_figure(panels, names_drawn, "What lambda does in training and in evaluation", note)


def study_report(study: Study) -> StudyReport:
    """The report of a study whose every run is finished."""
    models = {condition: _models(study, [None], condition) for condition in BEFORE}
    models |= {condition: _models(study, list(range(study.seeds)), condition) for condition in CROSSED}
    rows = [[str(condition), *_levels(found)] for condition, found in models.items()]
    both = balanced(models[Condition(ON, ON)]) - balanced(models[Condition(OFF, OFF)])  # [seeds, items]
    return StudyReport(
        study.folder,
        study.seeds,
        study.items,
        Table("", ["lambda", *ACCURACIES, *SPREADS], rows),
        {name: _changes(models, contrast) for name, contrast in CONTRASTS.items()},
        tuple(float(of_seed.mean()) for of_seed in both),
    )


def write_study(report: StudyReport) -> Path:
    """Write the report to study.md in its folder, and its figure to study.png; returns the former."""
    file = report.folder / "study.md"
    write_atomic(file, (report.text + "\n").encode())
    write_figure(report.figure(), report.folder / "study.png")
    return file


def _models(study: Study, seeds: Sequence[int | None], condition: Condition) -> Models:
    """The answers of the models of these seeds, their items in the first one's order."""
    trained = condition.evaluated if condition.trained is None else condition.trained
    results = [read_results(study.answers(seed, trained, condition.evaluated)) for seed in seeds]
    tables = [_tables(result.select(results[0].items)) for result in results]
    return Models(*(np.stack(part) for part in zip(*tables, strict=True)))


def _tables(result: ProbeResult) -> tuple[Floats, Floats]:
    assert result.yes is not None and result.no is not None
    return result.yes.correct, result.no.correct


def _levels(models: Models) -> list[str]:
    """Accuracies with two-way t intervals, and the plain spreads of the Yes map beside chance."""
    cells = []
    for measure in ACCURACIES.values():
        found = mean_over_seeds_and_items(measure(models))
        if not np.isfinite(found.low):  # all models are right, or wrong, on all items alike
            items = models.yes.shape[1]
            found = wilson(found.estimate / 100 * items, items).scaled(100)
        cells.append(LEVEL.write(found._replace(low=max(0, found.low), high=min(100, found.high))))
    tests = [permutation_null(table) for table in models.yes]
    for name, spread_of in (("sd", deviation), ("gap", gap)):
        chance = [getattr(test, name) for test in tests]
        ps = sorted(spread.p for spread in chance)
        p = f"p = {ps[0]:.2g}" if len(ps) == 1 else f"p from {ps[0]:.2g} to {ps[-1]:.2g}"
        observed = 100 * float(spread_of(models.yes.mean(axis=1)).mean())
        cells.append(f"{observed:.1f} (by chance {100 * np.mean([c.expected for c in chance]):.1f}, {p})")
    return cells


def _changes(models: Mapping[Condition, Models], contrast: Contrast) -> list[Interval]:
    """The weighted sum of conditions, paired by seed and by item; a single model stands for every seed."""
    return [
        mean_over_seeds_and_items(_sum(weight * measure(models[at]) for at, weight in contrast.items()))
        for measure in (*ACCURACIES.values(), yes_unevenness)
    ]


def _sum(parts: Iterable[Floats]) -> Floats:
    """The sum of arrays [models, items], of which some have a single model."""
    return functools.reduce(np.add, parts)
