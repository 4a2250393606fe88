"""What the position probe found, in numbers: one result, or two results on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transformers_agci import statistics as st
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.results import ProbeResult, Tables
from transformers_agci.statistics import Interval, McNemar, Measured, Resampled, SpreadTest

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Draws:
    """How many random draws the tests use, and their seed."""

    permutations: int = 2000
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class AnswerReport:
    """All Yes rows, or all No rows: accuracies are shares (0..1), margins are logits; lists are per cell.

    `margin` and what follows are None where the result carries no margins.
    """

    accuracy: Interval
    cells: list[Interval]
    unreadable: int
    unreadable_cells: list[int]
    spread: SpreadTest
    margin: Interval | None
    margin_cells: list[Interval] | None
    margin_spread: SpreadTest | None


@dataclass(frozen=True)
class ResultReport:
    """One result; what needs both answers is None where there are only Yes rows or only No rows."""

    label: str
    items: int
    shape: tuple[int, int]
    positions: tuple[str, ...]
    yes: AnswerReport | None
    no: AnswerReport | None
    balanced: Interval | None
    balanced_cells: list[Interval] | None
    d_prime: Interval | None
    d_prime_cells: list[Interval] | None


@dataclass(frozen=True)
class AnswerChange:
    """second - first on the rows of one answer: accuracy, its deviation over the cells, and who changed sides.

    Resampling adds noise to both deviations, most to the smaller one: the interval `sd` leans towards no change.
    """

    accuracy: Measured
    sd: Interval
    sd_first: float
    sd_second: float
    mcnemar_cells: list[McNemar]


@dataclass(frozen=True)
class PairReport:
    """second - first on the rows that both answered; intervals are item-clustered and paired."""

    first: str
    second: str
    items: int
    yes: AnswerChange | None
    no: AnswerChange | None
    balanced: Interval | None
    balanced_cells: list[Interval] | None
    d_prime: Interval | None
    left_out: int  # rows that only one of the two has

    @property
    def verdict(self) -> str:
        """One sentence about what the two maps show."""
        return verdict(self)


def measure(result: ProbeResult, draws: Draws | None = None) -> ResultReport:
    """All numbers of one result."""
    draws = draws or Draws()
    both = result.yes is not None and result.no is not None
    balanced, d_prime = _sensitivity([result], draws)[0] if both else (None, None)
    return ResultReport(
        label=result.label,
        items=len(result.items),
        shape=result.shape,
        positions=result.cells,
        yes=None if result.yes is None else _measure_answer(result.yes, draws),
        no=None if result.no is None else _measure_answer(result.no, draws),
        balanced=balanced.overall if balanced else None,
        balanced_cells=balanced.cells if balanced else None,
        d_prime=d_prime.overall if d_prime else None,
        d_prime_cells=d_prime.cells if d_prime else None,
    )


def compare(first: ProbeResult, second: ProbeResult, draws: Draws | None = None) -> PairReport:
    """second - first, on the rows that both have. InputError where there is none, or the grids differ."""
    draws = draws or Draws()
    if first.shape != second.shape:
        raise InputError(
            f"'{first.label}' has a {_x(first.shape)} grid and '{second.label}' a {_x(second.shape)} one; "
            "only results on the same grid can be compared."
        )
    known = set(second.items)
    common = [item for item in first.items if item in known]
    pairs = {
        name: _common_rows(getattr(first.select(common), name), getattr(second.select(common), name))
        for name in ("yes", "no")
    }
    if not common or not any(pairs.values()):
        raise InputError(
            f"'{first.label}' and '{second.label}' have no row in common (rows are paired by image, answer and "
            "position); compare two results of one data set."
        )
    yes, no = pairs["yes"], pairs["no"]
    balanced = d_prime = None
    if yes and no:
        sides = [
            ProbeResult(label, first.shape, tuple(common), yes[i], no[i])
            for i, label in enumerate((first.label, second.label))
        ]
        balanced, d_prime = _sensitivity(sides, draws)[1]
    shared = sum(pair[0].rows for pair in pairs.values() if pair)
    total = sum(tables.rows for result in (first, second) for tables in (result.yes, result.no) if tables)
    return PairReport(
        first=first.label,
        second=second.label,
        items=len(common),
        yes=_change(yes, draws) if yes else None,
        no=_change(no, draws) if no else None,
        balanced=balanced.overall if balanced else None,
        balanced_cells=balanced.cells if balanced else None,
        d_prime=d_prime.overall if d_prime else None,
        left_out=total - 2 * shared,
    )


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
    start = f"On {pair.items} items, {pair.second} against {pair.first}"
    if change.excludes(0):
        first = f"{what} {'rises' if change.estimate > 0 else 'falls'} by {_points(change, sign=False)}"
    else:
        first = f"no difference in {what} ({_points(change)}, which includes 0)"
    return f"{start}: {first}; {_evenness(pair)}{_threshold(pair)}."


def _evenness(pair: PairReport) -> str:
    name, answer = ("Yes", pair.yes) if pair.yes else ("No", pair.no)
    assert answer is not None
    values = f"deviation over the cells {100 * answer.sd_first:.1f} -> {100 * answer.sd_second:.1f} points"
    if not answer.sd.excludes(0):
        return f"the {name} map is neither more nor less even ({values}, change {_points(answer.sd)})"
    return (
        f"the {name} map is {'less' if answer.sd.estimate > 0 else 'more'} even ({values}, change {_points(answer.sd)})"
    )


def _threshold(pair: PairReport) -> str:
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


def _points(interval: Interval, sign: bool = True) -> str:
    """Percentage points with the interval; without `sign` the size of the change."""
    estimate, low, high = (100 * x for x in interval[:3])
    if not sign and estimate < 0:
        estimate, low, high = -estimate, -high, -low
    if sign:
        return f"{estimate:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    return f"{estimate:.1f} points (95 % interval {low:.1f} to {high:.1f})"


def _x(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _measure_answer(tables: Tables, draws: Draws) -> AnswerReport:
    margins = tables.margin if np.isfinite(tables.margin).any() else None
    margin = None
    if margins is not None:
        sample = st.bootstrap([margins], draws.resamples, draws.seed)[0]
        margin = _intervals(sample.overall, sample.cells, margins)
    return AnswerReport(
        accuracy=st.clustered_proportion(tables.correct),
        cells=st.cell_proportions(tables.correct),
        unreadable=int(np.nansum(tables.unreadable)),
        unreadable_cells=[int(count) for count in np.nansum(tables.unreadable, axis=0)],
        spread=st.permutation_null(tables.correct, draws.permutations, draws.seed),
        margin=margin.overall if margin else None,
        margin_cells=margin.cells if margin else None,
        margin_spread=None if margins is None else st.permutation_null(margins, draws.permutations, draws.seed),
    )


def _intervals(overall: Floats, cells: Floats, table: Floats) -> Measured:
    """Bootstrap intervals of the means of a table, from their samples [resamples] and [resamples, cells]."""
    present = (~np.isnan(table)).sum(axis=0)
    whole = st.percentile_interval(overall, float(np.nanmean(table)), int(present.sum()))
    return Measured(whole, _per_cell(cells, st.cell_means(table), present))


def _per_cell(samples: Floats, means: Floats, counts: Floats) -> list[Interval]:
    """[resamples, cells], [cells], [cells] -> an interval per cell."""
    return [
        st.percentile_interval(draws, float(mean), int(n))
        for draws, mean, n in zip(samples.T, means, counts, strict=True)
    ]


def _common_rows(first: Tables | None, second: Tables | None) -> tuple[Tables, Tables] | None:
    """Both tables with NaN where either has no row; None where nothing is left."""
    if first is None or second is None:
        return None
    missing = np.isnan(first.correct) | np.isnan(second.correct)
    if missing.all():
        return None

    def masked(tables: Tables) -> Tables:
        return Tables(*(np.where(missing, np.nan, getattr(tables, name)) for name in Tables.__annotations__))

    return masked(first), masked(second)


def _change(pair: tuple[Tables, Tables], draws: Draws) -> AnswerChange:
    first, second = pair[0].correct, pair[1].correct
    samples = st.bootstrap([first, second], draws.resamples, draws.seed)
    deviations = [float(st.deviation(st.cell_means(table))) for table in (first, second)]
    moved = st.deviation(samples[1].cells) - st.deviation(samples[0].cells)
    return AnswerChange(
        accuracy=st.paired_difference(first, second, draws.resamples, draws.seed),
        sd=st.percentile_interval(moved, deviations[1] - deviations[0], pair[0].rows),
        sd_first=deviations[0],
        sd_second=deviations[1],
        mcnemar_cells=[st.mcnemar(a, b) for a, b in zip(first.T, second.T, strict=True)],
    )


Both = tuple[Measured, Measured]


def _sensitivity(results: Sequence[ProbeResult], draws: Draws) -> list[Both]:
    """(balanced accuracy, d') of the first result; of two results also the differences second - first."""
    tables = [
        table
        for result in results
        for table in (result.yes.said_yes, result.no.said_yes, result.yes.correct, result.no.correct)  # type: ignore[union-attr]
    ]
    samples = st.bootstrap(tables, draws.resamples, draws.seed)
    observed = [Resampled(np.nansum(t, axis=0)[None], (~np.isnan(t)).sum(axis=0)[None].astype(float)) for t in tables]
    counts = [int(sample.counts.sum()) for sample in observed]
    cell_counts = [sample.counts[0] for sample in observed]
    n, cell_n = counts[0] + counts[1], cell_counts[0] + cell_counts[1]
    sides = [
        (_balanced_and_d_prime(samples[i : i + 4]), _balanced_and_d_prime(observed[i : i + 4]))
        for i in range(0, len(tables), 4)
    ]
    found = [_as_intervals(*sides[0], n, cell_n)]
    if len(sides) == 2:
        drawn, seen = (_subtract(first, second) for first, second in zip(*sides, strict=True))
        found.append(_as_intervals(drawn, seen, n, cell_n))
    return found


OverallAndCells = tuple[Floats, Floats]  # [resamples], [resamples, cells]


def _balanced_and_d_prime(samples: Sequence[Resampled]) -> list[OverallAndCells]:
    said_yes, said_no, yes, no = samples
    balanced = st.balanced_accuracy(yes.overall, no.overall), st.balanced_accuracy(yes.cells, no.cells)
    sensitivity = (
        st.d_prime(said_yes.overall, said_yes.counts.sum(1), said_no.overall, said_no.counts.sum(1)),
        st.d_prime(said_yes.cells, said_yes.counts, said_no.cells, said_no.counts),
    )
    return [balanced, sensitivity]


def _subtract(first: Sequence[OverallAndCells], second: Sequence[OverallAndCells]) -> list[OverallAndCells]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(first, second, strict=True)]


def _as_intervals(drawn: Sequence[OverallAndCells], seen: Sequence[OverallAndCells], n: int, cell_n: Floats) -> Both:
    measures = []
    for (overall, cells), (value, values) in zip(drawn, seen, strict=True):
        whole = st.percentile_interval(overall, float(value[0]), n)
        measures.append(Measured(whole, _per_cell(cells, values[0], cell_n)))
    return measures[0], measures[1]


def as_json(report: Any) -> Any:
    """Dataclasses, named tuples and numbers as JSON has them: NaN becomes null."""
    if hasattr(report, "__dataclass_fields__"):
        found = {name: as_json(getattr(report, name)) for name in report.__dataclass_fields__}
        return found | {"verdict": report.verdict} if isinstance(report, PairReport) else found
    if isinstance(report, tuple) and hasattr(report, "_asdict"):
        return {name: as_json(value) for name, value in report._asdict().items()}
    if isinstance(report, list | tuple):
        return [as_json(value) for value in report]
    return None if isinstance(report, float) and not np.isfinite(report) else report
