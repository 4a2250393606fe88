"""What a score looks like: the figures of its file, with interval and difference, and the terminal's tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.errors import InputError, printable
from transformers_agci.experiments.benchmarks import benchmark, score_answers
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Score
from transformers_agci.experiments.benchmarks.uncertainty import headline_difference, headline_interval
from transformers_agci.experiments.defaults import RESAMPLES
from transformers_agci.report.table import format_table
from transformers_agci.statistics import Interval
from transformers_agci.storage.atomic import write_output
from transformers_agci.storage.json_file import json_bytes, write_report

CHOICES = ("questions", "annotations", "problems", "splits", "split", "judge")  # that not every benchmark takes


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of an interval (0: no interval) and their seed."""

    resamples: int = RESAMPLES
    seed: int = 0


class Scored(NamedTuple):
    """A score, and everything that its result file says."""

    declared: Benchmark
    score: Score
    report: dict[str, Any]

    @property
    def text(self) -> str:
        """The tables and notes for the terminal."""
        return report_text(self.declared, self.score, self.report)


def score_files(name: str, inputs: Inputs, against: Inputs | None, bootstrap: Bootstrap) -> Scored:
    """Score the answers of one model, and the paired difference to those of a second one where there is one."""
    declared = benchmark(name)
    score = score_answers(declared, inputs)
    report: dict[str, Any] = {
        "benchmark": declared.name,
        "variant": score.variant,
        "official": inputs.official,
        **score.figures,
    }
    if bootstrap.resamples > 0:
        report |= interval_report(declared, score, bootstrap)
    if against is not None:
        report["difference"] = difference_report(declared, score, score_answers(declared, against), bootstrap)
    return Scored(declared, score, report)


def check_choices(name: str, given: set[str]) -> None:
    """InputError where the benchmark does not take one of the options that were given."""
    declared = benchmark(name)
    for option in CHOICES:
        if option in given and option not in declared.scoring.options:
            taken = ", ".join(f"`{name}`" for name in ("answers", *declared.scoring.options))
            raise InputError(f"{declared.name} takes no `{option}`; it takes: {taken}.")


def write_scored(scored: Scored, figures: Path | None, items: Path | None) -> None:
    """The unrounded figures as JSON, and one line per answer, to the files that are named."""
    if figures is not None:
        write_report(figures, scored.report)
    if items is not None:
        write_output(items, (json_bytes(item.as_row()) for item in scored.score.items))


def interval_report(declared: Benchmark, score: Score, bootstrap: Bootstrap) -> dict[str, Any]:
    """The headline's interval for the result file; null where the headline is not known."""
    known = score.figures.get(declared.scoring.headline) is not None
    interval = headline_interval(declared, score, bootstrap.resamples, bootstrap.seed)
    return {
        "interval_95": {
            declared.scoring.headline: _bounds(interval) if known else None,
            "resamples": bootstrap.resamples,
            "seed": bootstrap.seed,
            "clustered_by": "picture",
        }
    }


def _bounds(interval: Interval) -> list[float] | None:
    """None where every resample is alike, as when all answers are right: an interval of no width would say too much."""
    return [interval.low, interval.high] if math.isfinite(interval.low) and math.isfinite(interval.high) else None


def difference_report(declared: Benchmark, first: Score, second: Score, bootstrap: Bootstrap) -> dict[str, Any]:
    """Second minus first for the result file, with McNemar's test where answers are right or wrong."""
    found = headline_difference(declared, first, second, max(1, bootstrap.resamples), bootstrap.seed)
    report: dict[str, Any] = {
        declared.scoring.headline: found.headline.estimate,
        "interval_95": _bounds(found.headline),
    }
    if found.test is not None:
        report |= {"gained": found.test.gained, "lost": found.test.lost, "mcnemar_p": found.test.p}
    return report


def report_text(declared: Benchmark, score: Score, report: dict[str, Any]) -> str:
    """The figures as tables, the population above them, what to know about them below."""
    flat = {name: value for name, value in score.figures.items() if not isinstance(value, dict)}
    parts = [
        f"{declared.title}: {printable(score.variant)}",
        format_table(["figure", "value"], [[name, figure_text(name, value)] for name, value in flat.items()]),
    ]
    for title, group in score.figures.items():
        if isinstance(group, dict) and group:
            parts += [f"\n{title}", _group_table(group)]
    interval = (report.get("interval_95") or {}).get(declared.scoring.headline)
    if interval:
        low, high = (figure_text(declared.scoring.headline, bound) for bound in interval)
        parts.append(f"\n95 % interval of {declared.scoring.headline}: {low} to {high} (bootstrap over images)")
    if "difference" in report:
        known = score.figures.get(declared.scoring.headline) is not None
        of = "" if known else " of what there is"  # POPE without one of its three sets: no mean F1, but its difference
        parts.append(_difference_text(declared.scoring.headline, of, report["difference"]))
    return "\n".join([*parts, *(f"note: {printable(note)}" for note in score.notes)])


def _group_table(group: dict[str, Any]) -> str:
    """One line per member; a table of its own columns where the members are figures themselves."""
    if not all(isinstance(value, dict) for value in group.values()):
        lines = [[printable(name), figure_text(name, value)] for name, value in group.items()]
        return format_table(["figure", "value"], lines)
    columns = [name for name, value in next(iter(group.values())).items() if not isinstance(value, dict)]
    lines = [
        [printable(member), *(figure_text(name, values[name]) for name in columns)] for member, values in group.items()
    ]
    return format_table(["", *columns], lines)


def _difference_text(headline: str, of: str, difference: dict[str, Any]) -> str:
    bounds = [figure_text(headline, bound, signed=True) for bound in difference["interval_95"] or ()]
    change = figure_text(headline, difference[headline], signed=True)
    interval = f"95 % interval {' to '.join(bounds)}" if bounds else "no interval: every resample is alike"
    text = f"second minus first, {headline}{of}: {change} ({interval})"
    if "mcnemar_p" in difference:
        text += f"\n{difference['gained']} answers became right, {difference['lost']} wrong"
        text += f", McNemar's exact p = {difference['mcnemar_p']:.3g}"
    return text


def figure_text(name: str, value: Any, signed: bool = False) -> str:
    """A figure for people, in the unit of the result file: percent for _pct, else a fraction; counts as they are.

    A `signed` one is a difference: of percentages it is in points.
    """
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    sign = "+" if signed else ""
    unit = "points" if signed else "%"
    return f"{value:{sign}.2f} {unit}" if name.endswith("_pct") else f"{value:{sign}.4f}"


def flat_figures(report: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """A score's figures with those of its parts under the parts' names.

    >>> flat_figures({"count": 2, "categories": {"random": {"f1": 0.5}}})
    {'count': 2, 'categories/random/f1': 0.5}
    """
    found: dict[str, Any] = {}
    for name, value in report.items():
        found |= flat_figures(value, f"{within}{name}/") if isinstance(value, Mapping) else {f"{within}{name}": value}
    return found
