"""The ruler's table and figure, and the two measurements that make them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import PROCESSES, RULER_ITEMS, RULER_POOL, RULER_SETS
from transformers_agci.experiments.ruler.analysis import (
    Criterion,
    ItemSet,
    calibration_criteria,
    item_sets,
    ruler_criteria,
    summarize,
)
from transformers_agci.experiments.ruler.conditions import ARMS, CALIBRATION, LAMBDA, NOTHING, REPAIR, RULER, Condition
from transformers_agci.experiments.ruler.run import ItemRun
from transformers_agci.inference.progress import Progress
from transformers_agci.report.heatmap import DOTS_PER_INCH, GREY, INK, write_figure
from transformers_agci.report.table import Table, markdown_table
from transformers_agci.statistics.evenness import signed_root
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.json_file import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE, CALIBRATION_FILE = "ruler.png", "calibration.json"
# Arms by colour and marker: they can be told apart in grey and by colour-blind readers.
STYLES = {
    NOTHING: (INK, "o", "-"),
    REPAIR: (GREY, "D", ":"),
    "agci": ("#d95f02", "s", "-"),
    "uniform": ("#1b9e77", "^", "--"),
    "random": ("#7570b3", "v", "--"),
}
PANELS = (  # measure, axis, unit
    ("margin", "sd of the cells' mean margins (margin sds)", 1.0),
    ("auc", "sd of the cells' AUC (points)", 100.0),
)
HEADER = ("bias", "arm", "Yes %", "No %", "sd of margins", "sd of AUC", "sd of accuracies", "p", "against nothing")


@dataclass(frozen=True)
class RulerOptions:
    """What is measured, and where it goes.

    Attributes:
        items: items of one measurement, or of one item set of the calibration.
        pool, sets: fresh items of the calibration, and item sets drawn from them.
    """

    folder: Path
    items: int = RULER_ITEMS
    seed: int = 0
    processes: int = PROCESSES
    pool: int = RULER_POOL
    sets: int = RULER_SETS
    overwrite: bool = False
    progress: bool = True


@dataclass(frozen=True)
class Measured:
    """What a run found, as its JSON file in `folder` has it: every condition by its name, and the criteria."""

    folder: Path
    settings: Mapping[str, Any]
    conditions: Mapping[str, Any]
    criteria: Sequence[Criterion]


@dataclass(frozen=True)
class RulerReport(Measured):
    """Biases of known size under every arm: ruler.json."""

    @property
    def table(self) -> Table:
        """A row per condition: unevenness as signed roots of V, points for AUC and accuracies."""
        return Table("", HEADER, [_condition_row(found) for found in self.conditions.values()])

    @property
    def text(self) -> str:
        """The table and the criteria."""
        return f"{self.table.text}\n\n{criteria_text(self.criteria)}"

    def figure(self) -> "Figure":
        """Measured against planted bias, one line per arm; the encoder's bias beside them."""
        return ruler_figure(self.conditions, self.settings["items"])


@dataclass(frozen=True)
class CalibrationReport(Measured):
    """The instrument's own error rates, and what each set said: calibration.json."""

    sets: Sequence[ItemSet]

    @property
    def text(self) -> str:
        """The criteria."""
        return criteria_text(self.criteria)


def measure(options: RulerOptions) -> RulerReport:
    """Run the ruler: ruler.json, ruler.md and ruler.png in the folder."""
    run = _run(options, "margins.jsonl", "items", options.items, RULER)
    margins = run.margins(options.overwrite)
    summary = summarize(margins, RULER)
    settings = {**run.settings(), "items": options.items}
    found = RulerReport(options.folder, settings, summary, ruler_criteria(margins, summary))
    criteria = [criterion._asdict() for criterion in found.criteria]
    write_report(options.folder / "ruler.json", {"settings": settings, "conditions": summary, "criteria": criteria})
    table = markdown_table(found.table.header, found.table.rows)
    write_atomic(options.folder / "ruler.md", f"{table}\n\n{criteria_text(found.criteria)}\n".encode())
    write_figure(found.figure(), options.folder / FIGURE)
    return found


def calibrate(options: RulerOptions) -> CalibrationReport:
    """Run the calibration: calibration.json in the folder."""
    if options.items > options.pool:
        raise InputError(f"`items` must be at most `pool`, {options.pool}, but is {options.items}.")
    run = _run(options, "calibration.jsonl", "pool", options.pool, CALIBRATION)
    margins = run.margins(options.overwrite)
    progress, judged = Progress(options.sets, options.progress, unit="item set"), []
    for found in item_sets(margins, options.items, options.sets):
        judged.append(found)
        progress.add(1)
    progress.close()
    settings = {**run.settings(), "pool": options.pool, "items of a set": options.items, "sets": options.sets}
    summary = summarize(margins, CALIBRATION)
    report = CalibrationReport(options.folder, settings, summary, calibration_criteria(judged, options.items), judged)
    result = {
        "settings": settings,
        "conditions": summary,
        "criteria": [criterion._asdict() for criterion in report.criteria],
        "sets": [found._asdict() for found in judged],
    }
    write_report(options.folder / CALIBRATION_FILE, result)
    return report


def _run(options: RulerOptions, file: str, stream: str, items: int, conditions: Sequence[Condition]) -> ItemRun:
    path, drawn = options.folder / file, ("ruler", stream, options.seed)
    return ItemRun(path, drawn, items, conditions, LAMBDA, options.processes, options.progress)


def _condition_row(found: Mapping[str, Any]) -> Sequence[str]:
    uneven = found["unevenness"]
    return (
        found["bias"],
        found["arm"],
        *(f"{100 * found['accuracy'][name]['estimate']:.1f}" for name in ("yes", "no")),
        _root(uneven["margin"], 1, ".3f"),
        *(_root(uneven[name], 100, ".1f") for name in ("auc", "accuracy")),
        f"{found['position_p']:.3g}",
        found.get("against nothing", {}).get("verdict", ""),
    )


def _root(found: Mapping[str, float] | None, unit: float, form: str) -> str:
    return "-" if found is None else format(unit * signed_root(found["estimate"]), form)


def criteria_text(criteria: Sequence[Criterion]) -> str:
    """One line per criterion."""
    return "\n".join(f"{c.judged}: {c.name} ({c.stated}): {c.found}" for c in criteria)


def ruler_figure(summary: Mapping[str, Any], items: int) -> "Figure":
    """Measured against planted bias, one line per arm; the encoder's bias beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    betas = sorted({found["beta"] for found in summary.values() if found["beta"] is not None})
    encoder_at = betas[-1] + 0.5
    for axes, (measure_name, label, unit) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, arm in enumerate(ARMS):
            shift = 0.024 * (number - len(ARMS) // 2)  # intervals side by side
            of_arm = [found for found in summary.values() if found["arm"] == arm and found["unevenness"][measure_name]]
            decoder = [(found["beta"] + shift, found) for found in of_arm if found["beta"] is not None]
            encoder = [(encoder_at + 2 * shift, found) for found in of_arm if found["beta"] is None]
            _draw_points(axes, decoder, measure_name, unit, label=arm)
            _draw_points(axes, encoder, measure_name, unit)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.axvline(encoder_at - 0.25, color=GREY, linewidth=0.6)
        axes.set_xticks([*betas, encoder_at], [*(f"{beta:g}" for beta in betas), "encoder\nbias"])
        axes.set_xlabel("planted decoder bias (attention logits, top to bottom row)")
        axes.set_ylabel(label)
    figure.axes[0].legend(frameon=False, fontsize=8)
    title = f"The ruler: {items} items x 9 cells, 95 % intervals by jackknife over items"
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def _draw_points(
    axes: Any,
    points: Sequence[tuple[float, Mapping[str, Any]]],
    measure_name: str,
    unit: float,
    label: str | None = None,
) -> None:
    """The roots of V of one arm with their intervals, joined by a line."""
    if not points:
        return
    colour, marker, line = STYLES[points[0][1]["arm"]]
    levels = [found["unevenness"][measure_name] for _, found in points]
    low, middle, high = ([unit * signed_root(of[name]) for of in levels] for name in ("low", "estimate", "high"))
    axes.errorbar(
        [x for x, _ in points],
        middle,
        yerr=(np.subtract(middle, low), np.subtract(high, middle)),
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=5,
        linewidth=1.4,
        elinewidth=0.8,
        label=label,
    )
