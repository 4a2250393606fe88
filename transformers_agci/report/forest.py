"""Forest plots: a line per result or contrast, a panel per measure, every estimate with its interval."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transformers_agci.report.heatmap import GREY, INK, with_plain_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transformers_agci.statistics import Interval

LABEL_LETTERS = 34  # of a line's name before it is broken
INCHES_PER_LINE = 0.34
CURVE_INCHES = 2.8  # height of the curves below


class ForestPanel(NamedTuple):
    """A measure: an estimate per line, NaN where there is none; `zero` draws a line at no difference."""

    title: str
    points: "Sequence[Interval]"
    zero: bool = False


class CurvePanel(NamedTuple):
    """Curves in the unit square, by label: (x, y with its interval); the diagonal is drawn beside them."""

    title: str
    x_label: str
    y_label: str
    lines: "Mapping[str, Sequence[tuple[float, Interval]]]"


def forest_figure(
    panels: Sequence[ForestPanel],
    labels: Sequence[str],
    title: str = "",
    footnote: str = "",
    curves: Sequence[CurvePanel] = (),
) -> "Figure":
    """The panels side by side, and below them the curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = [textwrap.fill(label, LABEL_LETTERS) for label in labels]
    lines = max(name.count("\n") + 1 for name in names)
    height = 1.4 + INCHES_PER_LINE * (0.55 + 0.45 * lines) * len(names)
    size = 1.8 + 2.1 * len(panels), height + (CURVE_INCHES if curves else 0)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(), facecolor="white")
    FigureCanvasAgg(figure)
    upper: Any = figure
    if curves:
        halves: Any = figure.subfigures(2, 1, height_ratios=(height, CURVE_INCHES))
        upper, lower = halves
        _draw_curves(lower, curves, labels)
    places = upper.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for number, (axes, panel) in enumerate(zip(places, panels, strict=True)):
        _draw_panel(axes, panel)
        axes.set_yticks(range(len(names)), names if number == 0 else None)
        axes.set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, fontsize=11, color=INK)
    figure.supxlabel(footnote, fontsize=7.5, color=GREY)
    return with_plain_words(figure)


def _draw_panel(axes: Any, panel: ForestPanel) -> None:
    """A point and its interval per row, the first one on top."""
    from matplotlib.ticker import MaxNLocator

    for place, point in enumerate(panel.points):
        if np.isfinite(point.low):
            axes.plot([point.low, point.high], [place, place], color=GREY, linewidth=1.4)
        axes.plot([point.estimate], [place], "o", color=INK, markersize=4.5)
    if panel.zero:
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title(panel.title, fontsize=8.5, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7.5, length=2, color=GREY, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_curves(figure: Any, panels: Sequence[CurvePanel], labels: Sequence[str]) -> None:
    """A colour per label, the same in all panels; the legend stands beside the last one."""
    from matplotlib import colormaps

    colours = dict(zip(labels, colormaps["viridis"](np.linspace(0, 0.9, len(labels))), strict=True))
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(places, panels, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        for label, points in panel.lines.items():
            axes.plot([x for x, _ in points], [y.estimate for _, y in points], color=colours[label], label=label)
            for x, y in points:
                if np.isfinite(y.low):
                    axes.plot([x, x], [y.low, y.high], color=colours[label], linewidth=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title(panel.title, fontsize=8.5, color=INK)
        axes.set_xlabel(panel.x_label, fontsize=7.5, color=INK)
        axes.set_ylabel(panel.y_label, fontsize=7.5, color=INK)
        axes.tick_params(labelsize=7.5, length=2, color=GREY, labelcolor=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    places[-1].legend(loc="upper left", bbox_to_anchor=(1.05, 1), fontsize=7.5, frameon=False)
