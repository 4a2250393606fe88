"""The page's plots: values with their intervals in rows, and lines, drawn by matplotlib."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci.errors import printable
from transformers_agci.report.heatmap import GREY, INK
from transformers_agci.report.page.svg import PAPER, POINTS_PER_INCH, RULE, SERIES, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^Dv"  # a series has one of its own, beside its colour
ROW = 26.0  # pixels of one row of an interval plot, at least
LINE = 15.0  # pixels of one line of its name
LETTER = 6.4  # pixels, about, of a letter of the labels
LABEL_LETTERS = 40  # of a row's name before it is broken
WORDS = 11.5  # pixels of the letters' height
MOST_SAID = 40  # points that a plot's description reads out; the tables have all


@dataclass(frozen=True)
class Point:
    """A value and its interval, NaN where there is none; in a line plot `x` is where it stands."""

    value: float
    low: float = np.nan
    high: float = np.nan
    x: float = 0.0

    def said(self, form: str) -> str:
        """ "1.5, 1.2 to 1.8"."""
        text = f"{self.value:{form}}"
        return text if not np.isfinite(self.low) else f"{text}, {self.low:{form}} to {self.high:{form}}"


@dataclass(frozen=True)
class Series:
    """One result's points; `dashed` for what is no measurement."""

    label: str
    points: Sequence[Point]
    dashed: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its title as text, and the SVG's markup."""

    title: str
    svg: str


def interval_plot(
    title: str, rows: Sequence[str], series: Sequence[Series], *, x_label: str = "", zero: bool = False, form: str = "g"
) -> Plot:
    """A row per name in `rows`, in it a point with its interval per series: a forest plot, or values per cell."""
    from matplotlib.ticker import MaxNLocator

    names = [textwrap.fill(printable(row), LABEL_LETTERS) for row in rows]
    letters = max(len(line) for name in names for line in name.split("\n"))
    high = max(ROW, LINE * max(name.count("\n") + 1 for name in names))  # pixels of a row, whose name may take lines
    axes = _axes(250 + LETTER * letters, high * len(rows) + (44 if x_label else 28), series)
    words: dict[str, str] = {}
    for number, one in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * min(7.0, high * 0.7 / len(series)) / high
        places = np.arange(len(rows)) + shift
        values = [point.value for point in one.points]
        axes.errorbar(values, places, xerr=_errors(one.points), **_interval(number))
        said = [f"{one.label}, {row}: {point.said(form)}" for row, point in zip(rows, one.points, strict=True)]
        _marks(axes, number, (values, places), said, words)
    axes.set(xlabel=x_label, ylim=(len(rows) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(4))  # small numbers have long names
    axes.set_yticks(range(len(rows)), names)
    if zero:
        axes.axvline(0, color=GREY, linewidth=1.2, linestyle=(0, (2, 3)))
    return _plot(axes, title, series, words)


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    unit_square: bool = False,
    zero: bool = False,
    x_names: Sequence[tuple[float, str]] = (),
) -> Plot:
    """Lines through points at their `x`; `unit_square` spans 0 to 1 on both axes; `x_names` are the ticks instead."""
    axes = _axes(*((380.0, 372.0) if unit_square else (470.0, 320.0)), series)
    words: dict[str, str] = {}
    for number, one in enumerate(series):
        known = [point for point in one.points if np.isfinite(point.value)]
        at = [point.x for point in known], [point.value for point in known]
        dashes = (0, (5, 4)) if one.dashed else "-"
        axes.plot(*at, color=_colour(number), linewidth=1.8, linestyle=dashes)
        if one.marked:
            axes.errorbar(*at, yerr=_errors(known), **_interval(number))
            said = [f"{one.label}, {point.x:g}: {point.said('.3g')}" for point in known]
            _marks(axes, number, at, said, words)
    axes.set(xlabel=x_label, ylabel=y_label)
    if unit_square:
        axes.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1)
    if x_names:
        axes.set_xticks([at for at, _ in x_names], [name for _, name in x_names])
    if zero:
        axes.axhline(0, color=GREY, linewidth=1.2, linestyle=(0, (2, 3)))
    return _plot(axes, title, series, words)


def _axes(width: float, height: float, series: Sequence[Series]) -> "Axes":
    """Axes of a figure of this size in pixels, to which the legend's lines are added."""
    from matplotlib.figure import Figure

    lines = sum(label.count("\n") + 1 for label in _labels(width, series))
    size = width / POINTS_PER_INCH, (height + 1.6 * WORDS * lines) / POINTS_PER_INCH
    axes: Axes = Figure(figsize=size, layout="constrained").subplots()
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=WORDS, labelcolor=GREY)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def _labels(width: float, series: Sequence[Series]) -> list[str]:
    """The legend's labels, broken to the figure's width; none where one series needs none."""
    letters = int((width - 45) / LETTER)
    return [textwrap.fill(printable(one.label), letters) for one in series] if len(series) > 1 else []


def _plot(axes: "Axes", title: str, series: Sequence[Series], words: Mapping[str, str]) -> Plot:
    from matplotlib.lines import Line2D

    figure: Any = axes.figure
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=WORDS, color=INK)
    keys = [
        Line2D(
            [],
            [],
            color=_colour(number),
            linewidth=1.4 if one.marked else 1.8,
            linestyle=(0, (5, 4)) if one.dashed else "-",
            marker=MARKERS[number % len(MARKERS)] if one.marked else "",
            markeredgecolor=PAPER,
        )
        for number, one in enumerate(series)
    ]
    if labels := _labels(figure.get_figwidth() * POINTS_PER_INCH, series):
        figure.legend(
            keys, labels, loc="outside lower left", frameon=False, fontsize=WORDS, labelcolor=INK, borderaxespad=0
        )
    said = "; ".join([*words.values()][:MOST_SAID]) or ", ".join(one.label for one in series)
    return Plot(title, inline_svg(figure, f"{title}: {said}", words))


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)][0]


def _interval(number: int) -> dict[str, Any]:
    return {"fmt": "none", "ecolor": _colour(number), "elinewidth": 1.4}


def _errors(points: Sequence[Point]) -> list[list[float]]:
    """How far the intervals reach below and above; nothing where there is none."""
    return [[point.value - point.low for point in points], [point.high - point.value for point in points]]


def _marks(axes: "Axes", number: int, at: tuple[Any, Any], said: Sequence[str], words: dict[str, str]) -> None:
    """A marker per point, which says its words when it is pointed at."""
    for x, y, text in zip(*at, said, strict=True):
        if np.isfinite(x) and np.isfinite(y):
            name = f"mark{len(words)}"
            words[name] = printable(text)
            style: Any = {"color": _colour(number), "markeredgecolor": PAPER, "markeredgewidth": 0.6, "markersize": 7}
            axes.plot([x], [y], MARKERS[number % len(MARKERS)], gid=name, **style)
