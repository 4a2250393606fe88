"""Two results of the position probe on the same items: what differs, and one sentence about it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.errors import InputError, counted, printable, short
from transformers_agci.experiments.position.evenness_verdict import Both
from transformers_agci.experiments.position.pair_evenness import EvennessReport, compare_evenness
from transformers_agci.experiments.position.results import ProbeResult, Tables, baseline_note, rows_called
from transformers_agci.report.table import PERCENT, POINTS
from transformers_agci.statistics import Interval, McNemar, Measured, evenness, signal_detection
from transformers_agci.statistics.evenness import signed_root
from transformers_agci.statistics.intervals import Floats, items_with_rows
from transformers_agci.statistics.regression import two_sided_p


@dataclass(frozen=True)
class AnswerChange:
    """second - first on the rows of one answer: accuracy, its plain deviation over the cells, who changed sides.

    `simultaneous_cells` are the differences of `accuracy.cells` with intervals that hold in all cells at once;
    `holm_cells` are McNemar's p corrected for the number of cells of both answers. `margin` is the change of the
    margins (None without them), `margin_cells` its p per cell, corrected in the same way.
    """

    items: int  # that share a row of this answer
    accuracy: Measured
    said_yes: Interval  # the change of the share of Yes, over rows that both answered readably
    sd_first: float
    sd_second: float
    simultaneous_cells: list[Interval]
    mcnemar_cells: list[McNemar]
    holm_cells: list[float]
    margin: Measured | None
    margin_cells: list[float]


@dataclass(frozen=True)
class PairReport:
    """second - first on the rows that both answered; intervals count items and are paired."""

    first: str
    second: str
    items: int  # that share a row of either answer
    yes: AnswerChange | None
    no: AnswerChange | None
    balanced: Interval | None
    d_prime: Interval | None
    criterion: Interval | None
    auc: Interval | None
    evenness: EvennessReport
    left_out: int  # rows that only one of the two has
    choice: bool = False  # `yes` are choices between options
    baseline: str = ""  # what must be said about the baseline

    @property
    def shared(self) -> int:
        """Rows that both results have."""
        return sum(side.accuracy.overall.n for side in (self.yes, self.no) if side)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of what rests on both answers: of the one that fewer items have rows of."""
        return min(side.items for side in (self.yes, self.no) if side) - 1

    @property
    def verdict(self) -> str:
        """One sentence about what the two maps show."""
        return verdict(self)


def check_same_captions(first: ProbeResult, second: ProbeResult) -> None:
    """InputError where two data sets name their images alike: an item of both then has another caption in each.

    Captions are compared without their white space: those of the Yes rows of items that have some in both, and those of
    the No rows, of which an item's may be several.
    """
    asked = [_captions_of_yes_rows(result) for result in (first, second)]
    for item, caption in asked[0].items():
        if caption.split() != (other := asked[1].get(item, caption)).split():
            raise InputError(
                f"{first.named} and {second.named} are not of the same items: {printable(item)} has the caption "
                f"{short(caption)} in one and {short(other)} in the other; give results of one data set."
            )
    _check_same_negatives(first, second)


def _check_same_negatives(first: ProbeResult, second: ProbeResult) -> None:
    asked = dict(zip(second.items, second.no_captions, strict=False))
    for item, captions in zip(first.items, first.no_captions, strict=False):
        others = asked.get(item, frozenset())
        if captions and others and not captions & others:
            raise InputError(
                f"{first.named} and {second.named} have other negatives: the No rows of {printable(item)} ask "
                f"about {short(min(captions))} in one and {short(min(others))} in the other; give results of one set."
            )


def _captions_of_yes_rows(result: ProbeResult) -> dict[str, str]:
    if result.yes is None or not result.captions:
        return {}
    asked = np.flatnonzero((~np.isnan(result.yes.correct)).any(axis=1))
    return {result.items[k]: caption for k in asked if (caption := result.captions[k])}


def compare(first: ProbeResult, second: ProbeResult) -> PairReport:
    """second - first, on the rows that both have. InputError where there is none, or grids or captions differ."""
    check_same_grid(first, second)
    check_same_captions(first, second)
    known = set(second.items)
    common = [item for item in first.items if item in known]
    yes, no = (
        common_rows(getattr(first.select(common), name), getattr(second.select(common), name)) for name in ("yes", "no")
    )
    if not common or not (yes or no):
        raise InputError(
            f"{first.named} and {second.named} have no row in common (rows are paired by image, answer and "
            "position); compare two results of one data set."
        )
    shared = sum(pair[0].rows for pair in (yes, no) if pair)
    total = sum(tables.rows for result in (first, second) for tables in (result.yes, result.no) if tables)
    answers = _changes(yes, no)
    return PairReport(
        first=first.label,
        second=second.label,
        items=_items_of_either(yes, no),
        yes=answers[0],
        no=answers[1],
        **_sensitivity(yes, no),
        evenness=compare_evenness(yes, no, _why_no_margins(first, second), choice=first.choice),
        left_out=total - 2 * shared,
        choice=first.choice,
        baseline=baseline_note([first, second]),
    )


def _items_of_either(*answers: Both | None) -> int:
    return items_with_rows(np.concatenate([pair[0].correct for pair in answers if pair], axis=1))


def check_same_grid(first: ProbeResult, second: ProbeResult) -> None:
    """InputError where two results have different grids."""
    if first.shape != second.shape:
        shapes = ["x".join(map(str, result.shape)) for result in (first, second)]
        raise InputError(
            f"{first.named} has a {shapes[0]} grid and {second.named} a {shapes[1]} one; "
            "only results on the same grid can be compared."
        )
    if first.choice != second.choice:
        raise InputError(
            f"Only one of {first.named} and {second.named} is of choices between options; results of one kind of "
            "question can be compared."
        )


def on_common_rows(results: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Results on the rows that all of them have, their items in the order of the first; without captions' check."""
    known = [set(result.items) for result in results]
    common = [item for item in results[0].items if all(item in of_one for of_one in known)]
    chosen = [result.select(common) for result in results]
    yes, no = common_rows(*(result.yes for result in chosen)), common_rows(*(result.no for result in chosen))
    sides = [(yes[k] if yes else None, no[k] if no else None) for k in range(len(results))]
    return [replace(result, yes=side[0], no=side[1]) for result, side in zip(chosen, sides, strict=True)]


def common_rows(*results: Tables | None) -> tuple[Tables, ...] | None:
    """The tables of several results with NaN where any has no row; None where nothing is left.

    What was said is compared on rows that all answered readably, and margins where all have one.
    """
    given = [tables for tables in results if tables is not None]
    if len(given) < len(results):
        return None
    missing = np.any([np.isnan(tables.correct) for tables in given], axis=0)
    if missing.all():
        return None
    unread, without = (np.any([np.isnan(getattr(t, name)) for t in given], axis=0) for name in ("said_yes", "margin"))

    def masked(tables: Tables) -> Tables:
        fields = {name: np.where(missing, np.nan, getattr(tables, name)) for name in Tables.__annotations__}
        said, margin = np.where(unread, np.nan, tables.said_yes), np.where(without, np.nan, tables.margin)
        return Tables(**fields | {"said_yes": said, "margin": margin})

    return tuple(masked(tables) for tables in given)


def _changes(yes: Both | None, no: Both | None) -> list[AnswerChange | None]:
    """The change on Yes rows and on No rows; Holm's corrections are over the cells of both."""
    tests = [
        [st.mcnemar(a, b) for a, b in zip(pair[0].correct.T, pair[1].correct.T, strict=True)] if pair else []
        for pair in (yes, no)
    ]
    moved = [pair[1].margin - pair[0].margin if pair and _have_margins(pair) else None for pair in (yes, no)]
    answers = _holm_by_side([[test.p for test in side] for side in tests])
    margins = _holm_by_side([[] if side is None else [_moved_p(cell) for cell in side.T] for side in moved])
    return [
        AnswerChange(
            items=items_with_rows(pair[0].correct),
            accuracy=st.proportion_difference(pair[0].correct, pair[1].correct),
            said_yes=st.proportion_difference(pair[0].said_yes, pair[1].said_yes).overall,
            sd_first=float(st.deviation(st.cell_means(pair[0].correct))),
            sd_second=float(st.deviation(st.cell_means(pair[1].correct))),
            simultaneous_cells=st.simultaneous_differences(pair[0].correct, pair[1].correct),
            mcnemar_cells=tests[side],
            holm_cells=answers[side],
            margin=None if (change := moved[side]) is None else st.mean_over_items(change),
            margin_cells=margins[side],
        )
        if pair
        else None
        for side, pair in enumerate((yes, no))
    ]


def _have_margins(pair: Both) -> bool:
    return not bool(np.isnan(pair[1].margin - pair[0].margin).all())


def _holm_by_side(values: list[list[float]]) -> list[list[float]]:
    """Corrected over the Yes and the No rows together."""
    corrected = st.holm([p for side in values for p in side])
    return [corrected[: len(values[0])], corrected[len(values[0]) :]]


def _moved_p(change: Floats) -> float:
    """p of the items' changes [items] in one cell against none, by the paired t test; NaN where nothing has moved.

    Where all have moved by the same amount there is no t: then by the sign test.
    """
    known = change[~np.isnan(change)]
    (cell,) = st.mean_over_items(change[:, None]).cells
    p = two_sided_p(cell, len(known) - 1)
    if np.isnan(p) and len(known) > 1 and (np.all(known > 0) or np.all(known < 0)):
        return float(2.0 ** (1 - len(known)))
    return p


def _sensitivity(yes: Both | None, no: Both | None) -> dict[str, Any]:
    """Differences of what needs both answers; None for each where one is missing."""
    found: dict[str, Interval | None] = dict.fromkeys(("balanced", "d_prime", "criterion", "auc"))
    if not (yes and no):
        return found
    said = [(yes[i].said_yes, no[i].said_yes) for i in (0, 1)]
    found["balanced"] = signal_detection.balanced_difference(*((yes[i].correct, no[i].correct) for i in (0, 1)))
    found["d_prime"] = signal_detection.d_prime_difference(*said)
    found["criterion"] = signal_detection.criterion_difference(*said)
    if yes[0].has_margins and no[0].has_margins:
        found["auc"] = signal_detection.auc_difference(*((yes[i].margin, no[i].margin) for i in (0, 1)))
    return found


def _why_no_margins(first: ProbeResult, second: ProbeResult) -> str:
    """What to say where no Yes row has margins of both."""
    lacking = [result.label for result in (first, second) if result.yes and not result.yes.has_margins]
    if len(lacking) == 1:
        return f"{lacking[0]} has no margins"
    return "there are no margins" if lacking else "no row has a margin in both results"


def verdict(pair: PairReport) -> str:
    """One sentence about what the two maps show: every claim in it follows from an interval that excludes zero.

    It speaks of balanced accuracy where there are No rows, else of the accuracy on Yes rows; of the map's evenness;
    and of a moved threshold where Yes rows gain and No rows lose: a probe of Yes rows alone would call that a gain.
    """
    change, what = pair.balanced, "balanced accuracy"
    if change is None:
        answer = pair.yes or pair.no
        assert answer is not None
        change, what = answer.accuracy.overall, f"accuracy on {rows_called('Yes' if pair.yes else 'No', pair.choice)}"
    start = f"On {items_text(pair)}, {pair.second} against {pair.first}"
    if change.excludes(0):
        size = change.scaled(-1 if change.estimate < 0 else 1)
        size = size._replace(low=min(size.low, size.high), high=max(size.low, size.high))
        estimate, low, high = (PERCENT.value(value) for value in size[:3])
        verb = "rises" if change.estimate > 0 else "falls"
        said = f"{what} {verb} by {estimate} points (95 % interval {low} to {high})"
    elif not np.isfinite(change.low):
        seen = f" ({POINTS.value(change.estimate)} points here)" if np.isfinite(change.estimate) else ""
        said = f"whether {what} differs cannot be told{seen}"
    else:
        estimate, low, high = (POINTS.value(value) for value in change[:3])
        said = f"no difference in {what} shown ({estimate} points, 95 % interval {low} to {high})"
    return f"{start}: {said}; {_evenness_words(pair)}{_threshold_words(pair)}."


def items_text(pair: PairReport) -> str:
    """How many items two results share; by answer where Yes and No rows do not stand on the same ones."""
    sides = [(name, side.items) for name, side in (("Yes", pair.yes), ("No", pair.no)) if side]
    if all(items == pair.items for _, items in sides):
        return counted(pair.items, "item")
    return " and ".join(f"{counted(items, 'item')} with {rows_called(name, pair.choice)}" for name, items in sides)


def _evenness_words(pair: PairReport) -> str:
    report = pair.evenness
    if report.verdict == "cannot tell":
        map_of = "map" if pair.choice else "Yes map"
        return f"whether the {map_of} is more or less even cannot be told ({report.reason})"
    change = report.decisive
    assert change is not None
    what = f"the margins, in {evenness.MARGIN_UNIT}" if report.margin else "d'"
    values = (
        f"unbiased sd of {what}, over the cells {signed_root(change.first):.2f} -> {signed_root(change.second):.2f}; "
        f"change of the variance {change.estimate:+.3f}, 95 % interval {change.low:+.3f} to {change.high:+.3f}"
    )
    if not report.margin:
        values += f"; {report.reason}"
    if report.verdict == "no difference shown":
        return f"no difference in evenness shown ({values})"
    return f"the Yes map is {report.verdict} ({values})"


def _threshold_words(pair: PairReport) -> str:
    if pair.yes is None or pair.no is None:
        return ""
    yes, no = pair.yes.said_yes, pair.no.said_yes
    if not (yes.excludes(0) and no.excludes(0)) or yes.estimate * no.estimate < 0:
        return ""
    how = "more" if yes.estimate > 0 else "less"
    return (
        f"; the threshold moves: it says Yes {how} often (Yes rows {100 * yes.estimate:+.1f} points of Yes, "
        f"No rows {100 * no.estimate:+.1f})"
    )


def as_json(report: Any) -> Any:
    """Dataclasses, named tuples and numbers as JSON has them: NaN becomes null."""
    if hasattr(report, "__dataclass_fields__"):
        found = {name: as_json(getattr(report, name)) for name in report.__dataclass_fields__}
        return found | {"verdict": report.verdict} if isinstance(report, PairReport) else found
    if isinstance(report, tuple) and hasattr(report, "_asdict"):
        return {name: as_json(value) for name, value in report._asdict().items()}
    if isinstance(report, list | tuple):
        return [as_json(value) for value in report]
    if isinstance(report, np.generic):
        report = report.item()
    return None if isinstance(report, float) and not np.isfinite(report) else report
