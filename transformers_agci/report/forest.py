"""Forest plots: a line per result or contrast, a panel per measure, every estimate with its interval."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transformers_agci.report.heatmap import GREY, INK, with_plain_words
from transformers_agci.report.table import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_LETTERS = 34  # of a line's name before it is broken
INCHES_PER_LINE = 0.34


class ForestPanel(NamedTuple):
    """A measure: an estimate per line, NaN where there is none; `zero` draws a line at no difference."""

    title: str
    points: Sequence[Estimate]
    zero: bool = False


def forest_figure(
    panels: Sequence[ForestPanel], labels: Sequence[str], title: str = "", footnote: str = ""
) -> "Figure":
    """The panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    names = [textwrap.fill(label, LABEL_LETTERS) for label in labels]
    lines = max(name.count("\n") + 1 for name in names)
    height = 1.4 + INCHES_PER_LINE * (0.55 + 0.45 * lines) * len(names)
    figure = Figure(figsize=(1.8 + 2.1 * len(panels), height), layout=ConstrainedLayoutEngine(), facecolor="white")
    FigureCanvasAgg(figure)
    for number, (axes, panel) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True)
    ):
        for place, point in enumerate(panel.points):
            if np.isfinite(point.low):
                axes.plot([point.low, point.high], [place, place], color=GREY, linewidth=1.4)
            axes.plot([point.estimate], [place], "o", color=INK, markersize=4.5)
        if panel.zero:
            axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(panel.title, fontsize=8.5, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=7.5, length=2, color=GREY, labelcolor=INK)
        axes.set_yticks(range(len(names)), names if number == 0 else None)
        axes.set_ylim(len(names) - 0.5, -0.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11, color=INK)
    figure.supxlabel(footnote, fontsize=7.5, color=GREY)
    return with_plain_words(figure)
