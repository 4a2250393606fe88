"""Lambda chosen on one part of the items and reported, once, on the other: what the best of several lambdas is worth.

The best of several results on the items on which it was found looks better than it is. The parts are split by a
hash of the caption, so that the same caption is on the same side in every run and for every model.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from transformers_agci import statistics as st
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import CHOOSE_BY, DEV_SHARE, Choice
from transformers_agci.experiments.position.comparison import PairReport, compare, on_common_rows
from transformers_agci.experiments.position.evidence import check_same_items
from transformers_agci.experiments.position.measures import notes_on
from transformers_agci.experiments.position.result_labels import method_and_lambda
from transformers_agci.experiments.position.results import ProbeResult, baseline_note
from transformers_agci.statistics import Interval, evenness, nested_folds, signal_detection
from transformers_agci.statistics.signal_detection import Deletions
from transformers_agci.storage.reading import path_text

FOLDS = 5
FEWEST = 10  # items in each part


@dataclass(frozen=True)
class Split:
    """Which items choose and which report; goes into the manifest."""

    rule: str
    share: float
    dev: int
    held_out: int


@dataclass(frozen=True)
class Sweep:
    """Scores of every result on the items that choose, the chosen one, and its comparison on the held-out items.

    A score is the balanced accuracy, the AUC, or minus V of the margins; larger is better.
    """

    choice: Choice
    split: Split
    scores: dict[str, float]
    chosen: str
    pair: PairReport | None  # None: the baseline itself was chosen
    notes: list[str]


@dataclass(frozen=True)
class NestedSweep:
    """Five folds: in each, lambda is chosen on four fifths and reported on the rest. `gain` is over all items.

    It is that of the results that the folds chose; its interval counts that other items would have chosen others.
    """

    choice: Choice
    chosen: list[str]
    fold_items: list[int]
    gain: Interval
    notes: list[str]


def part_of(caption: str, parts: int) -> int:
    """0..parts - 1 from the caption's SHA-256."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") % parts


def sweep(results: Sequence[ProbeResult], choice: Choice = CHOOSE_BY, dev_share: float = DEV_SHARE) -> Sweep:
    """Split the items by their captions, choose on the first part, compare with the first result on the second."""
    _check(results)
    check_share(dev_share)
    first = results[0]
    buckets = np.array([part_of(caption, 1000) for caption in first.captions]) / 1000
    dev = [item for item, bucket in zip(first.items, buckets, strict=True) if bucket < dev_share]
    held = [item for item, bucket in zip(first.items, buckets, strict=True) if bucket >= dev_share]
    rule = f"SHA-256 of the caption, first 8 bytes modulo 1000, below {1000 * dev_share:g}: chooses"
    split = Split(rule, dev_share, len(dev), len(held))
    return _report(results, results, choice, (dev, held), split)


def check_share(dev_share: float) -> None:
    """InputError for a share that leaves no items to choose or none to report."""
    if not 0 < dev_share < 1:
        raise InputError(
            f"`dev_share` is {dev_share:g}, but must lie between 0 and 1: a lambda is not reported on the items on "
            "which it was chosen."
        )


def sweep_apart(dev: Sequence[ProbeResult], held_out: Sequence[ProbeResult], choice: Choice = CHOOSE_BY) -> Sweep:
    """The same with results of two data sets; InputError where they share captions."""
    _check(dev)
    if len(dev) != len(held_out):
        raise InputError(
            f"`held_out` has {counted(len(held_out), 'result')}, but there are {len(dev)} to choose from; give one on "
            "the held-out items for each, in the same order."
        )
    _check(held_out)
    shared = set.intersection(*({_plain(caption) for caption in of[0].captions} - {""} for of in (dev, held_out)))
    if shared:
        raise InputError(
            f"{counted(len(shared), 'caption')}, such as {min(shared)!r}, {'is' if len(shared) == 1 else 'are'} both "
            f"among those that choose, of {dev[0].named}, and among the held-out ones, of {held_out[0].named}; "
            "a lambda is not reported on the items on which it was chosen."
        )
    for results in (dev, held_out):
        without = sum(not _plain(caption) for caption in results[0].captions)
        if without:
            raise InputError(
                f"{counted(without, 'item')} of {results[0].named} {'has' if without == 1 else 'have'} no caption, "
                "and without captions it cannot be told whether items are both among those that choose and among the "
                "held-out ones; give results whose rows carry them."
            )
    parts = list(dev[0].items), list(held_out[0].items)
    return _report(dev, held_out, choice, parts, Split("two data sets", 0.5, len(parts[0]), len(parts[1])))


def _plain(caption: str) -> str:
    """White space is none of a caption's words."""
    return " ".join(caption.split())


def check_paired(dev: Sequence[str | Path], held_out: Sequence[str | Path]) -> list[str]:
    """Whether the results at one place of both lists are of one method and lambda, by the manifests beside them.

    InputError where they are not; otherwise what must be said about the pairs that no manifest vouches for.
    """
    unknown = []
    for one, other in zip(dev, held_out, strict=False):
        made_with = method_and_lambda(one), method_and_lambda(other)
        if None in made_with:
            unknown.append(f"{Path(one).name} and {Path(other).name}")
        elif made_with[0] != made_with[1] and any(lam for _, lam in filter(None, made_with)):
            said = [f"{method} at {lam:g}" for method, lam in filter(None, made_with)]
            raise InputError(
                f"{path_text(one)} is of {said[0]}, but {path_text(other)}, the held-out result at its place, of "
                f"{said[1]}; give the held-out results in the order of the others."
            )
    if not unknown:
        return []
    return [f"Paired by their places only, for no manifest beside both says method and lambda: {', '.join(unknown)}."]


def _report(
    dev: Sequence[ProbeResult],
    held_out: Sequence[ProbeResult],
    choice: Choice,
    parts: tuple[list[str], list[str]],
    split: Split,
) -> Sweep:
    for name, items, first in zip(("choose", "report"), parts, (dev[0], held_out[0]), strict=True):
        if len(items) < FEWEST:
            raise InputError(
                f"{first.named} leaves only {counted(len(items), 'item')} to {name}; at least {FEWEST} are needed: "
                "probe more of them."
            )
    scores = scores_of([result.select(parts[0]) for result in dev], choice)
    chosen = _best(list(scores.values()))
    pair = compare(held_out[0].select(parts[1]), held_out[chosen].select(parts[1])) if chosen else None
    read = {id(result): result for result in (*dev, *held_out)}
    return Sweep(
        choice, split, scores, dev[chosen].label, pair, [note for of in read.values() for note in notes_on(of)]
    )


def nested(results: Sequence[ProbeResult], choice: Choice = CHOOSE_BY) -> NestedSweep:
    """Five-fold: every item is reported on by a lambda that the other folds chose. The gain is in balanced accuracy."""
    _check(results)
    first = results[0]
    folds = np.array([part_of(caption, FOLDS) for caption in first.captions])
    chosen, tables = [], []
    for fold in range(FOLDS):
        inside = [item for item, of in zip(first.items, folds, strict=True) if of == fold]
        outside = [item for item, of in zip(first.items, folds, strict=True) if of != fold]
        if len(inside) < 2:
            raise InputError(
                f"Fold {fold + 1} of {FOLDS} has {counted(len(inside), 'item')} of {first.named}; give results of more "
                "items."
            )
        best = _best(list(scores_of([result.select(outside) for result in results], choice).values()))
        chosen.append(results[best].label)
        tables.append(_both_correct(results[0].select(inside), results[best].select(inside)))
    baseline, method = (tuple(np.concatenate([t[i][side] for t in tables]) for side in (0, 1)) for i in (0, 1))
    settled = signal_detection.balanced_difference(baseline, method)  # type: ignore[arg-type]
    gain = _with_choices(settled, results, choice, folds)
    return NestedSweep(choice, chosen, np.bincount(folds).tolist(), gain, _notes_of_nested(results, gain))


def _with_choices(settled: Interval, results: Sequence[ProbeResult], choice: Choice, folds: NDArray[Any]) -> Interval:
    """The gain with an interval that counts how uncertain the folds' choices are."""
    shared = on_common_rows(results)
    scores = [_score_without_each(result, choice) for result in shared]
    balanced = [_score_without_each(result, "balanced")[1] for result in shared]
    return nested_folds.with_choices(
        settled,
        [score for score, _ in scores],
        np.stack([nested_folds.influence(deleted) for _, deleted in scores], axis=1),
        np.stack([nested_folds.influence(deleted - balanced[0]) for deleted in balanced], axis=1),
        folds,
    )


def _notes_of_nested(results: Sequence[ProbeResult], gain: Interval) -> list[str]:
    """What must be said beside the gain: rows that it leaves out, and answers that go against their margins."""
    notes = [note for result in results for note in notes_on(result, "accuracies")]
    asked = max(sum(tables.rows for tables in (result.yes, result.no) if tables) for result in results)
    if left_out := asked - gain.n:
        be = "is" if left_out == 1 else "are"
        notes.append(f"{counted(left_out, 'row')} that not both results of a fold have {be} left out.")
    return notes


def _both_correct(first: ProbeResult, second: ProbeResult) -> list[tuple[st.Floats, st.Floats]]:
    """Of each result whether its Yes rows and its No rows are right; NaN for a row that either lacks."""
    sides = [(result.yes, result.no) for result in on_common_rows([first, second])]
    if any(tables is None for pair in sides for tables in pair):
        raise InputError(f"{first.named} and {second.named} share no Yes rows or no No rows in one of the folds.")
    return [(yes.correct, no.correct) for yes, no in sides if yes and no]


def _check(results: Sequence[ProbeResult]) -> None:
    if len(results) < 2:
        raise InputError("A sweep needs at least two results: the baseline first, then one per lambda.")
    check_same_items(results)
    if note := baseline_note(results):
        raise InputError(f"{note} Give that one first: what is chosen is held against the first.")
    choice = next((r.named for r in results if r.choice), None)
    if choice:
        raise InputError(f"{choice} is of choices between options; a sweep takes results with Yes rows and No rows.")
    lacking = next((r.named for r in results if r.yes is None or r.no is None), None)
    if lacking:
        raise InputError(
            f"{lacking} lacks Yes rows or No rows; a lambda chosen on one kind of row chooses a threshold."
        )


def scores_of(results: Sequence[ProbeResult], choice: Choice) -> dict[str, float]:
    """Results of the same items by the measure that chooses, on the rows that all of them have; larger is better."""
    shared = on_common_rows(results)
    if any(result.yes is None or result.no is None for result in shared):
        labels = ", ".join(result.named for result in results)
        raise InputError(f"{labels} share no Yes rows or no No rows among the items that choose.")
    return {result.label: _score_without_each(result, choice)[0] for result in shared}


def _score_without_each(result: ProbeResult, choice: Choice) -> Deletions:
    """The measure that chooses, and the same without each item in turn."""
    yes, no = result.yes, result.no
    assert yes is not None and no is not None
    if choice == "balanced":
        return _found(
            signal_detection.rates_without_each(
                (yes.correct, no.correct), lambda yes, _, no, __: signal_detection.balanced_accuracy(yes, no)
            ),
            f"{result.named} has its Yes rows or its No rows on one item; give results of more items.",
        )
    if not (yes.has_margins and no.has_margins):
        raise InputError(f"{result.named} carries no margins; choose by balanced accuracy.")
    if choice == "auc":
        return _found(
            signal_detection.auc_without_each(yes.margin, no.margin),
            f"{result.named} has too few margins for an AUC; choose by balanced accuracy.",
        )
    contributions = _found(
        evenness.of_standardized_margins(yes.margin, no.margin),
        f"{result.named} has no variance of the margins over the cells (they do not vary, or a cell has fewer than "
        "two); choose by balanced accuracy.",
    )
    return -evenness.unevenness(contributions), -evenness.leave_one_out(contributions)


T = TypeVar("T")


def _found(what: T | None, otherwise: str) -> T:
    if what is None:
        raise InputError(otherwise)
    return what


def _best(scores: Sequence[float]) -> int:
    """The place of the largest; the first of equals, so that the baseline wins a tie."""
    return int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
