"""Everything that several results on the same items show: each against the first, corrected for all comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.position.calibration import Calibration, Roc, calibration, roc_curve
from transformers_agci.experiments.position.comparison import (
    PairReport,
    check_same_captions,
    check_same_grid,
    common_rows,
    compare,
)
from transformers_agci.experiments.position.measures import ResamplingConfig, ResultReport, measure
from transformers_agci.experiments.position.results import ProbeResult, baseline_note
from transformers_agci.statistics import Interval, equivalence, intervals, regression
from transformers_agci.statistics.distributions import t_share

UNREADABLE = 2.0  # beside 0 for No and 1 for Yes


@dataclass(frozen=True)
class Consistency:
    """Items whose Yes rows are all right, and all answered alike (all Yes or all No), in every cell that they have."""

    all_right: Interval
    all_alike: Interval


@dataclass(frozen=True)
class ResultEvidence:
    """One result by itself."""

    report: ResultReport
    consistency: Consistency | None
    calibration: Calibration | None
    roc: Roc | None


@dataclass(frozen=True)
class Comparison:
    """One result against the baseline. `tests` holds p by name, `holm` the same corrected over all results' tests.

    position  lambda x position: does the change of the log odds of a right Yes row depend on the cell?
    shift     how much more often Yes is said (log odds), whatever the truth
    truth     lambda x truth: how much more Yes depends on the truth (log odds ratio)
    """

    pair: PairReport
    position: regression.Wald | None
    shift: Interval | None
    truth: Interval | None
    equivalence: equivalence.Equivalence | None
    tests: dict[str, float]
    holm: dict[str, float]


@dataclass(frozen=True)
class Evidence:
    """Results in the order given; `comparisons` are of the second and later ones against the first."""

    items: int
    results: list[ResultEvidence]
    comparisons: list[Comparison]
    margin: float | None  # of equivalence, a share (0..1), stated beforehand
    notes: list[str]


def gather(
    results: Sequence[ProbeResult], margin: float | None = None, resampling: ResamplingConfig | None = None
) -> Evidence:
    """Measure and compare; InputError where the results are not of the same items and grid."""
    check_same_items(results)
    baseline = results[0]
    singles = [_single(result, resampling) for result in results]
    pairs = [_compare(baseline, result, margin) for result in results[1:]]
    names = [(number, name) for number, pair in enumerate(pairs) for name in pair.tests]
    corrected = st.holm([pairs[number].tests[name] for number, name in names])
    for (number, name), p in zip(names, corrected, strict=True):
        pairs[number].holm[name] = p
    notes = [note for single in singles for note in single.report.notes] + _notes(results, pairs, margin)
    return Evidence(len(baseline.items), singles, pairs, margin, notes)


def check_same_items(results: Sequence[ProbeResult]) -> None:
    """InputError where results have different grids or items, or too few items to test anything."""
    first = results[0]
    for other in results[1:]:
        check_same_grid(first, other)
        differ = set(first.items) ^ set(other.items)
        if differ:
            raise InputError(
                f"{first.named} and {other.named} are not of the same items: {counted(len(differ), 'item')} "
                f"{'is' if len(differ) == 1 else 'are'} in one of them only, such as {min(differ)}; give results of "
                "one data set."
            )
        check_same_captions(first, other)
        lacking = next(
            (name for name in ("yes", "no") if bool(getattr(first, name)) != bool(getattr(other, name))), None
        )
        if lacking:
            raise InputError(
                f"Only one of {first.named} and {other.named} has {lacking.capitalize()} rows; give the results on "
                "the negatives of both, or of none."
            )
    if len(first.items) < 2:
        raise InputError(f"{first.named} has one item: nothing can be tested on it; give results of more items.")


def _notes(results: Sequence[ProbeResult], pairs: Sequence[Comparison], margin: float | None) -> list[str]:
    notes = [note] if (note := baseline_note(results)) else []
    notes += [
        f"{counted(pair.pair.left_out, 'row')} that only one of {pair.pair.first} and {pair.pair.second} has "
        f"{'is' if pair.pair.left_out == 1 else 'are'} left out of their comparison."
        for pair in pairs
        if pair.pair.left_out
    ]
    for result in results:
        if len(result.builds) > 1:
            notes.append(
                f"{result.label} was answered by several models or builds of its server: {', '.join(result.builds)}."
            )
    bare = [r.label for r in results if not any(t.has_margins for t in (r.yes, r.no) if t)]
    if bare:
        notes.append(
            f"No margins in {', '.join(bare)}: no AUC, no calibration, "
            + ("no verdict on evenness." if results[0].choice else "and evenness only by d', if there are No rows.")
        )
    for result in results:
        sides = [(name, t.has_margins) for name, t in (("Yes", result.yes), ("No", result.no)) if t]
        if len({has for _, has in sides}) == 2:
            name = next(name for name, has in sides if has)
            notes.append(f"Only the {name} rows of {result.label} have margins: no AUC and no calibration.")
    for result in results:
        notes += _notes_on_rows(result)
    notes += _notes_on_odds(results, pairs)
    if margin is None and pairs:
        notes.append(
            "No equivalence is tested, because no margin was stated: a difference that is not shown is not zero."
        )
    return notes


def _notes_on_rows(result: ProbeResult) -> list[str]:
    """What the answers of one result cannot show."""
    notes, tables = [], [t for t in (result.yes, result.no) if t]
    if all(np.nanmin(t.correct) == 1 for t in tables):
        notes.append(f"Every answer of {result.label} is right: only margins can differ between its positions.")
    if any(t is None for t in (result.yes, result.no)):
        only = "choices between options" if result.choice else f"{'Yes' if result.yes else 'No'} rows only"
        notes.append(f"{result.label} has {only}: no d', no balanced accuracy.")
    without = sum(int(np.isnan(t.margin[~np.isnan(t.correct)]).sum()) for t in tables if t.has_margins)
    if without:
        have, be = ("has", "is") if without == 1 else ("have", "are")
        notes.append(
            f"{counted(without, 'row')} of {result.label} {have} no margin and {be} left out of what margins show."
        )
    return notes


def _notes_on_odds(results: Sequence[ProbeResult], pairs: Sequence[Comparison]) -> list[str]:
    """For which results lambda x position is not tested, and how it is where odds are infinite."""
    notes, first, infinite = [], results[0], []
    for other, pair in zip(results[1:], pairs, strict=True):
        shared = common_rows(first.yes, other.select(first.items).yes)
        if shared is None:
            continue
        shared_correct = shared[0].correct, shared[1].correct
        fewest = regression.fewest_changed(*shared_correct)
        if fewest < regression.MIN_CHANGED:
            differ = "differs" if fewest == 1 else "differ"
            notes.append(
                f"lambda x position is not tested for {other.label}: in some cell {counted(fewest, 'answer')} {differ} "
                f"from {first.label}'s, and {regression.MIN_CHANGED} are needed."
            )
        elif pair.position is None:
            notes.append(
                f"lambda x position is not tested for {other.label}: {regression.why_untested(*shared_correct)}."
            )
        elif any(regression.logits_of_rates(tables.correct) is None for tables in shared):
            infinite.append(other.label)
    if infinite:
        notes.append(
            f"For {', '.join(infinite)} lambda x position is tested on shares, not on log odds: some cell has only "
            "right or only wrong answers."
        )
    return notes


def _single(result: ProbeResult, resampling: ResamplingConfig | None) -> ResultEvidence:
    consistency = None
    if result.yes:
        known = ~np.isnan(result.yes.correct).all(axis=1)
        correct, n = result.yes.correct[known], int(known.sum())
        said = np.where(result.yes.unreadable == 1, UNREADABLE, result.yes.said_yes)[known]
        right = int((np.nanmin(correct, axis=1) == 1).sum())
        alike = int(
            ((np.nanmin(said, axis=1) == np.nanmax(said, axis=1)) & (np.nanmax(said, axis=1) < UNREADABLE)).sum()
        )
        # Of a choice it is known whether the letter is right, and not which other one was given.
        consistency = Consistency(st.wilson(right, n), st.NO_DATA if result.choice else st.wilson(alike, n))
    answers = result.yes, result.no
    return ResultEvidence(measure(result, resampling), consistency, calibration(*answers), roc_curve(*answers))


def _compare(baseline: ProbeResult, result: ProbeResult, margin: float | None) -> Comparison:
    pair = compare(baseline, result)
    aligned = result.select(baseline.items)
    yes, no = (common_rows(getattr(baseline, name), getattr(aligned, name)) for name in ("yes", "no"))
    position = regression.method_by_position(*(t.correct for t in yes)) if yes else None
    odds = None
    if yes and no:
        odds = regression.method_by_truth(*((yes[i].said_yes, no[i].said_yes) for i in (0, 1)))
    change = pair.balanced or (pair.yes or pair.no).accuracy.overall  # type: ignore[union-attr]
    same = None if margin is None else equivalence.equivalence(change, margin, pair.freedom)
    tests = {
        "balanced accuracy" if pair.balanced else "accuracy": regression.two_sided_p(change, pair.freedom),
        "AUC": regression.two_sided_p(pair.auc, pair.freedom) if pair.auc else np.nan,
        "evenness": _evenness_p(pair),
        "lambda x position": position.p if position else np.nan,
        "lambda x truth": regression.two_sided_p(odds[1], pair.freedom) if odds else np.nan,
        "threshold": regression.two_sided_p(odds[0], pair.freedom) if odds else np.nan,
    }
    known = {name: float(p) for name, p in tests.items() if np.isfinite(p)}
    shift, truth = odds or (None, None)
    return Comparison(pair, position, shift, truth, same, known, {})


def _evenness_p(pair: PairReport) -> float:
    """Twice the smaller p of "both units fall" and "both units rise": at most .05 where a verdict may be given.

    NaN where one unit cannot be had, and where both would show a change but something else forbids the verdict.
    """
    found = pair.evenness
    places = np.array(
        [
            np.nan if c is None else intervals.deviate(Interval(*c[2:], items), 0.0, items - 1)
            for c, items in zip(found.units, found.unit_items, strict=True)
        ]
    )
    shares = t_share(np.array([-places, places]), np.array(found.unit_items) - 1)
    p = float(np.minimum(1.0, 2 * shares.max(axis=1).min()))  # NaN stays NaN
    return np.nan if p <= 0.05 and found.verdict == "cannot tell" else p
