"""A sweep and a plan in words and tables."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.position.comparison import (
    PairReport,
    as_json,
    check_same_captions,
    check_same_grid,
    on_common_rows,
)
from transformers_agci.experiments.position.results import ProbeResult, Tables, rows_called
from transformers_agci.experiments.position.sweep import FOLDS, NestedSweep, Sweep
from transformers_agci.experiments.position.tables import pair_text
from transformers_agci.report.table import POINTS, Table
from transformers_agci.statistics import Floats, planning
from transformers_agci.storage import manifest
from transformers_agci.storage.atomic import is_stream
from transformers_agci.storage.json_file import write_json, write_report
from transformers_agci.storage.reading import read_bytes

EXPERIMENT = "sweep"
SCORES = {"balanced": "balanced accuracy, %", "auc": "AUC", "evenness": "variance of the margins over cells"}
BASELINE_CHOSEN = "The baseline itself was chosen: no other result is better on these items."


def sweep_text(found: Sweep | NestedSweep) -> str:
    """What was chosen, on how many items, and what it is worth on the others."""
    if isinstance(found, NestedSweep):
        return nested_text(found)
    pair: PairReport | None = found.pair
    blocks = [scores_table(found).text]
    if pair is None:
        blocks.append(BASELINE_CHOSEN)
    else:
        blocks += [f"On the {found.split.held_out} held-out items:", pair_text(pair), pair.verdict]
    return "\n\n".join([*blocks, *found.notes])


def nested_text(found: NestedSweep) -> str:
    """What each fold's others chose, and the gain over all items."""
    said = (
        f"{FOLDS} folds, each reported on by the result that the others chose: {', '.join(found.chosen)}\n\n"
        f"balanced accuracy of what they chose against the first result: {POINTS.write(found.gain)} points (the "
        "interval counts that the choices are uncertain)"
    )
    return "\n\n".join([said, *found.notes])


def scores_table(found: Sweep) -> Table:
    """Every result by the measure that chooses, on the items that choose."""
    factor = {"balanced": 100.0, "auc": 1.0, "evenness": -1.0}[found.choice]
    rows = [
        [
            label,
            f"{factor * score:.{1 if found.choice == 'balanced' else 4}f}",
            "chosen" if label == found.chosen else "",
        ]
        for label, score in found.scores.items()
    ]
    return Table("", [f"on {found.split.dev} items that choose", SCORES[found.choice], ""], rows)


def write_sweep(found: Sweep | NestedSweep, path: str | Path, sources: Sequence[str | Path]) -> None:
    """The numbers as JSON; the manifest beside them has the split and the hashes of what was read."""
    target = Path(path)
    manifest.refuse_another_kind(target, EXPERIMENT)
    write_report(target, as_json(found))
    if is_stream(target):  # beside which nothing lies
        return
    split = (
        {"rule": f"SHA-256 of the caption, first 8 bytes modulo {FOLDS}", "folds": FOLDS}
        if isinstance(found, NestedSweep)
        else as_json(found.split)
    )
    hashes = {Path(source).name: hashlib.sha256(read_bytes(source)).hexdigest() for source in sources}
    settings = {"experiment": EXPERIMENT, "choose_by": found.choice, "split": split, "results_sha256": hashes}
    write_json(manifest.path_of(target), {"settings": settings, "environment": manifest.environment()})


class PlannedEffect(NamedTuple):
    """An effect in words, and the items that show it with each power."""

    what: str
    plans: Sequence[planning.Plan]


@dataclass(frozen=True)
class ItemPlan:
    """How many items show effects of one size; `how` says where the variance of a difference comes from."""

    effects: tuple[PlannedEffect, ...]
    pilot_items: int
    how: str

    @property
    def table(self) -> Table:
        """A row per effect, a column per power."""
        header = ["items needed, tests at the 5 % level", *(f"power {power:g}" for power in planning.POWERS)]
        return Table("", header, [[effect.what, *_items(effect.plans)] for effect in self.effects])

    @property
    def source(self) -> str:
        """The pilot, in words."""
        return f"From a pilot of {counted(self.pilot_items, 'item')}; {self.how}."

    @property
    def text(self) -> str:
        """The table, and what it comes from."""
        return f"{self.table.text}\n\n{self.source}"


def plan_items(pilots: Sequence[ProbeResult], difference: float) -> ItemPlan:
    """Items for each power: for positions that differ by `difference` (a share), and for two results that do."""
    first = pilots[0]
    tables = {name: t for name, t in (("Yes", first.yes), ("No", first.no)) if t is not None}
    name, correct = next((name, t.correct) for name, t in tables.items())
    residual = planning.residual_variance(correct)
    complete, cells = int((~np.isnan(correct)).all(axis=1).sum()), correct.shape[1]
    if complete < 2:
        raise InputError(
            f"{complete} of {counted(len(correct), 'item')} of {first.named} {'has' if complete == 1 else 'have'} a "
            f"{name} row in every cell, and two are needed to plan from; give a pilot whose rows are whole."
        )
    if not residual > 0:
        raise InputError(
            f"The answers of {first.named} do not vary within its items: no number of items can be planned from it; "
            "give a pilot with more items."
        )
    points = f"{100 * difference:g}"
    rows, plans = rows_called(name, first.choice), planning.items_for_position(correct.shape[1], difference, residual)
    effects = [PlannedEffect(f"positions differ with an sd of {points} points, {rows}", plans)]
    variance, items, what, how = _difference_variance(pilots)
    if variance > 0:
        plans = planning.items_for_difference(difference, variance)
        effects.append(PlannedEffect(f"two results' {what} differ by {points} points", plans))
    else:
        how += ". Nothing can be planned for a difference: it is the same for every item"
    if complete < len(correct):
        how += f"; positions: from the {counted(complete, 'item')} with a {name} row in every cell"
    low, high = planning.variance_bounds((complete - 1) * (cells - 1))
    how += f". A pilot of this size leaves the items for positions uncertain: {low:.2g} to {high:.2g} times as many"
    if variance > 0:
        low, high = planning.variance_bounds(items - 1)
        how += f"; those for two results: {low:.2g} to {high:.2g} times"
    how += " (95 %, as of normal residuals)"
    return ItemPlan(tuple(effects), len(first.items), how)


def _items(plans: Sequence[planning.Plan]) -> list[str]:
    return [f"{plan.items:,}" if plan.items else f"> {planning.MOST_ITEMS:,}" for plan in plans]


def _difference_variance(pilots: Sequence[ProbeResult]) -> tuple[float, int, str, str]:
    """The variance between items of their balanced accuracies' difference, of how many, of what, and whence."""
    first = pilots[0]
    if len(pilots) == 2:
        check_same_grid(first, pilots[1])
        check_same_captions(first, pilots[1])
        shared = on_common_rows(pilots)
        change = _by_item(shared[1]) - _by_item(shared[0]) if shared[0].yes or shared[0].no else np.array([])
        items = int(np.isfinite(change).sum())
        if items < 2:
            raise InputError(
                f"{first.named} and {pilots[1].named} have {counted(items, 'item')} with rows in common; give two "
                "of one set."
            )
        whose = f"the {counted(items, 'item')} that the two pilots share"
        how = f"the difference's variance is that of {whose}"
        return float(np.nanvar(change, ddof=1)), items, _measure(shared[0]), how
    means = _by_item(first)
    if np.isfinite(means).sum() < 2:
        raise InputError(
            f"{first.named} has no two items with a balanced accuracy: its Yes and No rows are of different items, "
            "or of one; give a pilot whose negatives are asked about the same images."
        )
    variance = 2 * float(np.nanvar(means, ddof=1))
    return (
        variance,
        int(np.isfinite(means).sum()),
        _measure(first),
        "two results are taken as unrelated, which asks for too many items: give a second pilot",
    )


def _measure(result: ProbeResult) -> str:
    return "balanced accuracies" if result.yes and result.no else "accuracies"


def _by_item(result: ProbeResult) -> Floats:
    """[items] balanced accuracy of each item, or its accuracy where there is one kind of row; NaN without a row."""
    sides: list[Tables] = [t for t in (result.yes, result.no) if t is not None]
    with np.errstate(invalid="ignore"):
        means = [np.nansum(t.correct, axis=1) / (~np.isnan(t.correct)).sum(axis=1) for t in sides]
    found: Floats = np.mean(means, axis=0)
    return found
