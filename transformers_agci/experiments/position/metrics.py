"""The position probe's metrics from result files to printed tables, the maps and JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.errors import InputError, printable, short
from transformers_agci.experiments.position.comparison import PairReport, as_json, compare
from transformers_agci.experiments.position.maps import Limits, probe_figure
from transformers_agci.experiments.position.measures import ResamplingConfig, ResultReport, measure, unreadable_replies
from transformers_agci.experiments.position.result_labels import label_of, model_of
from transformers_agci.experiments.position.results import (
    ProbeResult,
    read_results,
)
from transformers_agci.experiments.position.tables import ALL_AT_ONCE, pair_positions, pair_text, result_text
from transformers_agci.report.heatmap import image_path
from transformers_agci.report.table import PERCENT, Table, format_table
from transformers_agci.storage.folder import is_temporary
from transformers_agci.storage.json_file import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Paths = Sequence[str | Path]


@dataclass(frozen=True)
class Control:
    """How often a model says Yes without seeing the image, on Yes rows and on No rows (None where there are none).

    `choice`: the rows are choices between options, and `yes_rate` is how often the letter is right. `notes` is what
    must be said beside it.
    """

    name: str
    yes_rate: st.Interval | None
    no_rate: st.Interval | None
    choice: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metrics:
    """Everything that was measured: one or two results, their comparison, the controls."""

    results: list[ResultReport]
    pair: PairReport | None
    controls: list[Control]


def load(results: Paths, negatives: Paths = (), labels: Sequence[str] = ()) -> list[ProbeResult]:
    """Read one or two result files, each with the file of its negatives where they stand apart."""
    if len(results) not in (1, 2):
        raise InputError(
            f"Give one result file, or two to compare (baseline, AGCI), but there are {len(results)}; "
            "agci evidence takes any number."
        )
    return load_all(results, negatives, labels)


def load_all(
    results: Paths, negatives: Sequence[str | Path | None] = (), labels: Sequence[str] = (), *, keep_rows: bool = False
) -> list[ProbeResult]:
    """Read any number of result files, with the text of their rows where it is asked for.

    `negatives` has an entry per result file, None where its No rows are in the same file.
    """
    for name, given in (("`negatives_file`", negatives), ("`labels`", labels)):
        if given and len(given) != len(results):
            raise InputError(f"{name} needs one entry per result file ({len(results)}), but has {len(given)}.")
    if any(not isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise InputError(f"`labels` must be texts, no two of them alike, but are {short(list(labels))}.")
    names = [printable(name) for name in list(labels) or _distinct(results)]
    apart = list(negatives) or [None] * len(results)
    return [
        read_results(path, no, name, keep_rows=keep_rows) for path, no, name in zip(results, apart, names, strict=True)
    ]


def load_controls(text_only: Paths = (), blank_image: Paths = ()) -> list[Control]:
    """Read the answers that were given without an image, and on a blank one."""
    return [
        _control(kind if len(paths) == 1 else f"{kind}, {label_of(path)}", path)
        for kind, paths in (("text only", text_only), ("blank image", blank_image))
        for path in paths
    ]


def evaluate(
    results: Sequence[ProbeResult], controls: Sequence[Control] = (), resampling: ResamplingConfig | None = None
) -> Metrics:
    """Measure the results, and compare them where there are two."""
    pair = compare(results[0], results[1]) if len(results) == 2 else None
    return Metrics([measure(result, resampling) for result in results], pair, list(controls))


def metrics_text(metrics: Metrics) -> str:
    """Every table: the results one after another, then their difference, then the controls."""
    blocks = [result_text(report, len(metrics.results)) for report in metrics.results]
    if metrics.pair:
        blocks.append(pair_text(metrics.pair))
        blocks.append(f"{pair_positions(metrics.pair, metrics.results[0].positions).text}\n{ALL_AT_ONCE}")
    if metrics.controls:
        blocks.append(controls_text(metrics.controls))
    if metrics.pair:
        blocks.append(metrics.pair.verdict)
    return "\n\n".join(blocks)


def accuracies_text(paths: Paths) -> str:
    """One line per result file: accuracy on Yes and No rows, unreadable replies."""
    lines, choice = [], False
    for path in paths:
        result = read_results(path)
        choice |= result.choice
        accuracies = [st.clustered_proportion(t.correct) if t else None for t in (result.yes, result.no)]
        unreadable = sum(int(np.nansum(t.unreadable)) for t in (result.yes, result.no) if t)
        lines.append([result.label, *(PERCENT.write(accuracy) for accuracy in accuracies), str(unreadable)])
    if choice:
        rows = [[label, right, unreadable] for label, right, _, unreadable in lines]
        return format_table(["accuracy", "choices % [95 %]", "unreadable"], rows)
    return format_table(["accuracy", "Yes rows % [95 %]", "No rows % [95 %]", "unreadable"], lines)


def controls_table(controls: Sequence[Control]) -> Table:
    """The Yes-rates without the image."""
    if any(control.choice for control in controls):
        choices = [[control.name, PERCENT.write(control.yes_rate)] for control in controls]
        return Table("", ["right without the image", "choices % [95 %]"], choices)
    rows = [[control.name, PERCENT.write(control.yes_rate), PERCENT.write(control.no_rate)] for control in controls]
    return Table("", ["says Yes without the image", "Yes rows % [95 %]", "No rows % [95 %]"], rows)


def controls_text(controls: Sequence[Control]) -> str:
    """The table of the Yes-rates without the image, and what must be said beside it."""
    return "\n\n".join([controls_table(controls).text, *notes_of_controls(controls)])


def notes_of_controls(controls: Sequence[Control]) -> list[str]:
    """What must be said beside their table."""
    return [note for control in controls for note in control.notes]


def metrics_figure(metrics: Metrics, title: str = "", limits: Limits | None = None) -> "Figure":
    """The maps. `limits` are the ends of the accuracies' scale, in percent."""
    return probe_figure(metrics.results, metrics.pair, title, _controls_line(metrics.controls), limits=limits)


def write_json(metrics: Metrics, path: str | Path) -> None:
    """Write all numbers as JSON."""
    content: Any = {
        "results": as_json(metrics.results),
        "difference": as_json(metrics.pair),
        "without_picture": as_json(metrics.controls),
    }
    write_report(path, content)


def check_outputs(*images: str | None) -> None:
    """Refuse an image that cannot be drawn before anything is measured."""
    for image in filter(None, images):
        image_path(image)


def _distinct(paths: Paths) -> list[str]:
    """Names of the results; those that would be called the same bear their model's or file's name, path or number, too.

    The path of a temporary folder says nothing: the folders of a session's runs are numbered.
    """
    names = [label_of(path) for path in paths]
    stems = [Path(path).stem for path in paths]
    folders = list(dict.fromkeys(Path(path).parent for path in paths))
    places = [
        f"run {folders.index(Path(path).parent) + 1}" if is_temporary(Path(path).parent) else str(path)
        for path in paths
    ]
    numbers = [f"result {number}" for number in range(1, len(paths) + 1)]
    models = [model_of(path) for path in paths]
    for more in (models, stems, places, numbers) if all(models) else (stems, places, numbers):
        taken = Counter(names)
        if max(taken.values()) == 1:
            break
        alike = [name for name in taken if taken[name] > 1]
        for name in alike:
            members = [place for place, other in enumerate(names) if other == name]
            if len({more[member] for member in members}) > 1:
                for member in members:
                    names[member] = more[member] if name == stems[member] else f"{name}, {more[member]}"
    return names


def _control(name: str, path: str | Path) -> Control:
    result = read_results(path, label=name)
    yes, no = (
        None if t is None else st.clustered_proportion(t.correct if result.choice else t.said_yes)
        for t in (result.yes, result.no)
    )
    return Control(name, yes, no, result.choice, tuple(filter(None, [unreadable_replies(result, "shares of Yes")])))


def _controls_line(controls: Sequence[Control]) -> str:
    shares = [
        f"{control.name}: {100 * rate.estimate:.0f} %{' (No rows)' if rate is control.no_rate else ''}"
        for control in controls
        for rate in (control.yes_rate, control.no_rate)
        if rate is not None
    ]
    what = "right" if any(control.choice for control in controls) else "Yes"
    return f"{what} without the image - {', '.join(shares)}" if shares else ""
