"""Two results of the position probe on the same items: what differs, whether one is more even, and the verdict."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.results import ProbeResult, Tables
from transformers_agci.report.table import PERCENT, POINTS
from transformers_agci.statistics import Floats, Interval, McNemar, Measured, evenness, signal_detection
from transformers_agci.statistics.evenness import Change, Verdict, signed_root


@dataclass(frozen=True)
class AnswerChange:
    """second - first on the rows of one answer: accuracy, its plain deviation over the cells, who changed sides.

    `simultaneous_cells` are the differences of `accuracy.cells` with intervals that hold in all cells at once;
    `holm_cells` are McNemar's p corrected for the number of cells of both answers.
    """

    accuracy: Measured
    sd_first: float
    sd_second: float
    simultaneous_cells: list[Interval]
    mcnemar_cells: list[McNemar]
    holm_cells: list[float]


@dataclass(frozen=True)
class ThresholdMatched:
    """The method against the baseline with a constant added to its margins, so that both say Yes equally often.

    `shift` is that constant (logits), `accuracy` the unbiased variance over the cells of the accuracy on Yes rows,
    `balanced` the balanced accuracy (None without No rows); `first` is the shifted baseline.
    """

    shift: float
    accuracy: Change | None
    balanced: Change | None


@dataclass(frozen=True)
class EvennessReport:
    """Unbiased variances over the cells (may be negative) of both results, their difference, and what it allows to say.

    margin             margins of the Yes rows in `evenness.MARGIN_UNIT`
    margin_other_unit  the same in the unit `other_unit`; a verdict needs both to agree
    margin_no          `margin` for the No rows
    auc, d_prime       per-cell AUC and probit d'
    accuracy           accuracies of the Yes rows, or of the No rows where there are no Yes rows
    """

    margin: Change | None
    margin_other_unit: Change | None
    other_unit: str
    margin_no: Change | None
    auc: Change | None
    d_prime: Change | None
    accuracy: Change | None
    threshold_matched: ThresholdMatched | None
    verdict: Verdict
    reason: str  # what the verdict rests on, or why there is none


@dataclass(frozen=True)
class PairReport:
    """second - first on the rows that both answered; intervals count items and are paired."""

    first: str
    second: str
    items: int
    yes: AnswerChange | None
    no: AnswerChange | None
    balanced: Interval | None
    d_prime: Interval | None
    criterion: Interval | None
    auc: Interval | None
    evenness: EvennessReport
    left_out: int  # rows that only one of the two has

    @property
    def verdict(self) -> str:
        """One sentence about what the two maps show."""
        return verdict(self)


Both = tuple[Tables, Tables]


def compare(first: ProbeResult, second: ProbeResult) -> PairReport:
    """second - first, on the rows that both have. InputError where there is none, or the grids differ."""
    if first.shape != second.shape:
        raise InputError(
            f"'{first.label}' has a {_x(first.shape)} grid and '{second.label}' a {_x(second.shape)} one; "
            "only results on the same grid can be compared."
        )
    known = set(second.items)
    common = [item for item in first.items if item in known]
    yes, no = (
        _common_rows(getattr(first.select(common), name), getattr(second.select(common), name))
        for name in ("yes", "no")
    )
    if not common or not (yes or no):
        raise InputError(
            f"'{first.label}' and '{second.label}' have no row in common (rows are paired by image, answer and "
            "position); compare two results of one data set."
        )
    shared = sum(pair[0].rows for pair in (yes, no) if pair)
    total = sum(tables.rows for result in (first, second) for tables in (result.yes, result.no) if tables)
    answers = _changes(yes, no)
    return PairReport(
        first=first.label,
        second=second.label,
        items=len(common),
        yes=answers[0],
        no=answers[1],
        **_sensitivity(yes, no),
        evenness=compare_evenness(yes, no, len(common), _why_no_margins(first, second)),
        left_out=total - 2 * shared,
    )


def _common_rows(first: Tables | None, second: Tables | None) -> Both | None:
    """Both tables with NaN where either has no row; None where nothing is left."""
    if first is None or second is None:
        return None
    missing = np.isnan(first.correct) | np.isnan(second.correct)
    if missing.all():
        return None
    without = np.isnan(first.margin) | np.isnan(second.margin)

    def masked(tables: Tables) -> Tables:
        fields = {name: np.where(missing, np.nan, getattr(tables, name)) for name in Tables.__annotations__}
        return Tables(**fields | {"margin": np.where(without, np.nan, tables.margin)})

    return masked(first), masked(second)


def _changes(yes: Both | None, no: Both | None) -> list[AnswerChange | None]:
    """The change on Yes rows and on No rows; Holm's correction is over the cells of both."""
    tests = [
        [st.mcnemar(a, b) for a, b in zip(pair[0].correct.T, pair[1].correct.T, strict=True)] if pair else []
        for pair in (yes, no)
    ]
    corrected = st.holm([test.p for side in tests for test in side])
    places = {0: corrected[: len(tests[0])], 1: corrected[len(tests[0]) :]}
    return [
        AnswerChange(
            accuracy=st.proportion_difference(pair[0].correct, pair[1].correct),
            sd_first=float(st.deviation(st.cell_means(pair[0].correct))),
            sd_second=float(st.deviation(st.cell_means(pair[1].correct))),
            simultaneous_cells=st.simultaneous_differences(pair[0].correct, pair[1].correct),
            mcnemar_cells=tests[side],
            holm_cells=places[side],
        )
        if pair
        else None
        for side, pair in enumerate((yes, no))
    ]


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


def compare_evenness(
    yes: Both | None, no: Both | None, items: int, without_margins: str = "there are no margins"
) -> EvennessReport:
    """Every measure of evenness, and the verdict: by margins of the Yes rows, by d' where a result has no margins.

    `without_margins` says, where there are none, whose they are.
    """
    side = yes or no
    assert side is not None
    auc = d_prime = margin = other = margin_no = None
    other_unit = "the distance of Yes and No rows" if yes and no else "logits"
    if yes and no:
        d_prime = evenness.compare(*(evenness.of_d_prime(yes[i].said_yes, no[i].said_yes) for i in (0, 1)))
        if yes[0].has_margins and no[0].has_margins:
            auc = evenness.compare(*(evenness.of_auc(yes[i].margin, no[i].margin) for i in (0, 1)))
            other = evenness.compare(*(evenness.of_margins_by_distance(yes[i].margin, no[i].margin) for i in (0, 1)))
    if yes and yes[0].has_margins:
        beside = [pair.margin for pair in no] if no and no[0].has_margins else [None, None]
        margin = evenness.compare(*(evenness.of_standardized_margins(yes[i].margin, beside[i]) for i in (0, 1)))
        if no is None:
            other = evenness.compare(*(evenness.of_means(tables.margin) for tables in yes))
    if no and no[0].has_margins:
        beside = [pair.margin for pair in yes] if yes and yes[0].has_margins else [None, None]
        margin_no = evenness.compare(*(evenness.of_standardized_margins(no[i].margin, beside[i]) for i in (0, 1)))
    said, reason = _verdict(yes, no, items, (margin, other, other_unit), (d_prime, without_margins))
    return EvennessReport(
        margin=margin,
        margin_other_unit=other,
        other_unit=other_unit,
        margin_no=margin_no,
        auc=auc,
        d_prime=d_prime,
        accuracy=evenness.compare(*(evenness.of_means(tables.correct) for tables in side)),
        threshold_matched=_threshold_matched(yes, no) if yes else None,
        verdict=said,
        reason=reason,
    )


def _verdict(
    yes: Both | None,
    no: Both | None,
    items: int,
    margins: tuple[Change | None, Change | None, str],
    d_prime: tuple[Change | None, str],
) -> tuple[Verdict, str]:
    """The verdict, and in words what it rests on or why it cannot be given."""
    if yes is None or items < evenness.MIN_ITEMS:
        few = f"{items} item{'s are' if items != 1 else ' is'} too few; at least {evenness.MIN_ITEMS} are needed"
        return "cannot tell", "there are no Yes rows" if yes is None else few
    if yes[0].has_margins:
        return _verdict_by_margins(yes, *margins, items)
    if no is None:
        return "cannot tell", f"{d_prime[1]}, and accuracies of Yes rows alone move with the threshold"
    return _verdict_by_d_prime(yes, no, *d_prime, items)


def _verdict_by_margins(
    yes: Both, margin: Change | None, other: Change | None, unit: str, items: int
) -> tuple[Verdict, str]:
    if margin is None or other is None:
        lacking = (
            "the margins do not vary, or a cell has too few" if margin is None else "Yes and No rows do not differ"
        )
        return "cannot tell", lacking
    said = evenness.verdict(margin, other, items)
    if said == "cannot tell":
        units = f"{evenness.MARGIN_UNIT} or {unit}"
        return said, f"the variance of the margins over the cells changes in one unit, {units}, only"
    if said != "no difference shown" and any(evenness.are_cut_off(tables.margin) for tables in yes):
        return "cannot tell", "the margins are cut off or too coarse: too many Yes rows share the outermost one"
    return said, "variance of the margins of the Yes rows over the cells"


def _verdict_by_d_prime(
    yes: Both, no: Both, d_prime: Change | None, without_margins: str, items: int
) -> tuple[Verdict, str]:
    if d_prime is None:
        return "cannot tell", f"{without_margins}, and {_why_no_d_prime(yes, no)}"
    said_yes = [(yes[i].said_yes, no[i].said_yes) for i in (0, 1)]
    confirming = evenness.compare(*(evenness.of_d_prime(*tables, relative=True) for tables in said_yes))
    said = evenness.verdict(d_prime, confirming, items)
    if said == "cannot tell":
        return said, "the variance of d' over the cells changes only as d' itself does, or only beside it"
    if signal_detection.criterion_difference(*said_yes).excludes(0):
        # Under a moved threshold d' depends on the shape of margins that nobody has seen: it must hold for three,
        # with heavy tails and with none. (For Cauchy's tails, too, it would hardly ever hold.)
        shapes: tuple[evenness.Shape, ...] = ("t(3)", "uniform")
        for shape in shapes:
            confirming = evenness.compare(*(evenness.of_d_prime(*tables, shape=shape) for tables in said_yes))
            if evenness.verdict(d_prime, confirming, items) != said:
                reason = "the threshold moved, and without margins what d' then shows depends on their shape"
                return "cannot tell", reason
    return said, "variance of d' over the cells"


def _why_no_d_prime(yes: Both, no: Both) -> str:
    """Which answers some cell has too few of."""
    fewest = min(
        (int(counts.min()), kind, name)
        for name, pair in (("Yes", yes), ("No", no))
        for tables in pair
        for kind, counts in (
            ("right", np.nansum(tables.correct == 1, axis=0)),
            ("wrong", np.nansum(tables.correct == 0, axis=0)),
        )
    )
    if fewest[0] >= evenness.MIN_COUNT:
        return "d' does not vary between items"
    needed = f"d' needs {evenness.MIN_COUNT} right and {evenness.MIN_COUNT} wrong answers of either kind in every cell"
    return f"{needed}, but some cell has {fewest[0]} {fewest[1]} on its {fewest[2]} rows"


def _threshold_matched(yes: Both, no: Both | None) -> ThresholdMatched | None:
    """Shift the baseline's margins until it says Yes as often as the method, and compare with that."""
    pairs = [pair for pair in (yes, no) if pair]
    if not all(pair[0].has_margins for pair in pairs):
        return None
    margins = [pair[0].margin for pair in pairs]
    seen = [np.isfinite(table) for table in margins]
    said = [np.where(have, pair[1].said_yes, 0.0) for have, pair in zip(seen, pairs, strict=True)]
    rows, yeses = int(sum(have.sum() for have in seen)), int(sum(table.sum() for table in said))
    shift = signal_detection.shift_to_yes_count(margins, yeses)
    everything = np.concatenate([table[have] for table, have in zip(margins, seen, strict=True)])
    density = signal_detection.density_at(everything, -shift)
    if density <= 0 or not all(have.any(axis=0).all() for have in seen):
        return None
    above = [np.where(have, table > -shift, 0.0) for table, have in zip(margins, seen, strict=True)]
    drift: Floats = sum((a - b).sum(axis=1) for a, b in zip(said, above, strict=True)) * (len(margins[0]) / rows)
    first = [signal_detection.at_threshold(table, -shift, drift, density) for table in margins]
    second = [
        evenness.of_means(np.where(have, pair[1].correct, np.nan)) for have, pair in zip(seen, pairs, strict=True)
    ]
    balanced = None
    if no is not None and second[0] is not None and second[1] is not None:
        balanced = _level_change(
            (first[0].mean(axis=1) + 1 - first[1].mean(axis=1)) / 2,
            (second[0].mean(axis=1) + second[1].mean(axis=1)) / 2,
        )
    return ThresholdMatched(shift, evenness.compare(first[0], second[0]), balanced)


def _level_change(first: Floats, second: Floats) -> Change | None:
    """The means of two vectors over items, and their paired difference with a t interval."""
    n = len(first)
    single = max(first.std(ddof=1), second.std(ddof=1)) if n > 1 else 0.0
    if single == 0:
        return None
    error = max((second - first).std(ddof=1) / np.sqrt(n), single / n)
    found = st.intervals.about(float((second - first).mean()), float(error), n - 1, n)
    return Change(float(first.mean()), float(second.mean()), *found[:3])


def verdict(pair: PairReport) -> str:
    """One sentence about what the two maps show: every claim in it follows from an interval that excludes zero.

    It speaks of balanced accuracy where there are No rows, else of the accuracy on Yes rows; of the map's evenness;
    and of a moved threshold where Yes rows gain and No rows lose: a probe of Yes rows alone would call that a gain.
    """
    change, what = pair.balanced, "balanced accuracy"
    if change is None:
        answer = pair.yes or pair.no
        assert answer is not None
        change, what = answer.accuracy.overall, f"accuracy on {'Yes' if pair.yes else 'No'} rows"
    start = f"On {pair.items} item{'s' if pair.items != 1 else ''}, {pair.second} against {pair.first}"
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
    return f"{start}: {said}; {_evenness_words(pair.evenness)}{_threshold_words(pair)}."


def _evenness_words(report: EvennessReport) -> str:
    if report.verdict == "cannot tell":
        return f"whether the Yes map is more or less even cannot be told ({report.reason})"
    change = report.margin or report.d_prime
    assert change is not None
    what = f"the margins, in {evenness.MARGIN_UNIT}" if report.margin else "d'"
    values = (
        f"unbiased sd of {what}, over the cells {signed_root(change.first):.2f} -> {signed_root(change.second):.2f}; "
        f"change of the variance {change.estimate:+.3f}, 95 % interval {change.low:+.3f} to {change.high:+.3f}"
    )
    if report.verdict == "no difference shown":
        return f"no difference in evenness shown ({values})"
    return f"the Yes map is {report.verdict} ({values})"


def _threshold_words(pair: PairReport) -> str:
    if pair.yes is None or pair.no is None:
        return ""
    yes, no = pair.yes.accuracy.overall, pair.no.accuracy.overall
    if not (yes.excludes(0) and no.excludes(0)) or yes.estimate * no.estimate > 0:
        return ""
    word = "Yes" if yes.estimate > 0 else "No"
    return (
        f"; the threshold moves: it says {word} more often (Yes rows {100 * yes.estimate:+.1f} points, "
        f"No rows {100 * no.estimate:+.1f})"
    )


def _x(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


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
