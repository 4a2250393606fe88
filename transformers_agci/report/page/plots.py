"""Plots as geometry: where every line, marker and word of an SVG stands, in pixels. The template writes them down.

Colours are classes, so that a plot follows the page's dark and light looks; every series has a marker of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MARKERS = (  # paths around (0, 0)
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-4,-4h8v8h-8z",
    "M0,-5l5,9h-10z",
    "M0,-5l5,5l-5,5l-5,-5z",
    "M0,5l5,-9h-10z",
)
COLOURS = 6  # series colours of the style sheet
ROW = 26  # pixels of one row of an interval plot
LETTER = 6.6  # pixels, about, of a letter of the labels


class Point(NamedTuple):
    """A value and its interval, NaN where there is none; in a line plot `x` is where it stands."""

    value: float
    low: float = np.nan
    high: float = np.nan
    x: float = 0.0


@dataclass(frozen=True)
class Series:
    """One result's points; `dashed` for what is no measurement."""

    label: str
    points: Sequence[Point]
    dashed: bool = False
    joined: bool = True
    marked: bool = True


class Mark(NamedTuple):
    """A marker with its interval's two ends (both the marker's place where there is none), and what it says."""

    x: float
    y: float
    x1: float
    y1: float
    x2: float
    y2: float
    said: str


class Tick(NamedTuple):
    """A place on an axis and its word."""

    at: float
    text: str


class Drawn(NamedTuple):
    """A series as drawn."""

    label: str
    colour: int
    marker: str
    dashed: bool
    path: str
    marks: list[Mark]


@dataclass(frozen=True)
class Plot:
    """An SVG: the frame (left, top, right, bottom) holds the data, ticks and labels stand around it."""

    title: str
    description: str
    width: float
    height: float
    frame: tuple[float, float, float, float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str
    series: list[Drawn]
    zero_x: float | None = None
    zero_y: float | None = None
    legend: bool = True


def interval_plot(
    title: str, rows: Sequence[str], series: Sequence[Series], *, x_label: str = "", zero: bool = False, form: str = "g"
) -> Plot:
    """A row per name in `rows`, in it a point with its interval per series: a forest plot, or values per cell."""
    values = [v for s in series for p in s.points for v in (p.value, p.low, p.high)] + ([0.0] if zero else [])
    left = 16 + LETTER * max(len(row) for row in rows)
    frame = (left, 8.0, left + 260.0, 8.0 + ROW * len(rows))
    low, high, ticks = _range(values, 5)
    to_x = _scaled(low, high, frame[0], frame[2])
    drawn = []
    for number, one in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * min(7.0, ROW * 0.7 / len(series))
        marks = [
            _across(point, to_x, frame[1] + ROW * (place + 0.5) + shift, f"{one.label}, {rows[place]}", form)
            for place, point in enumerate(one.points)
            if np.isfinite(point.value)
        ]
        drawn.append(_drawn(one, number, "", marks))
    return Plot(
        title,
        _described(drawn),
        frame[2] + 16,
        frame[3] + 40,
        frame,
        [Tick(to_x(tick), _number(tick)) for tick in ticks],
        [Tick(frame[1] + ROW * (place + 0.5), row) for place, row in enumerate(rows)],
        x_label,
        "",
        drawn,
        zero_x=to_x(0.0) if zero else None,
        legend=len(series) > 1,
    )


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
    size = (360.0, 360.0) if unit_square else (460.0, 320.0)
    frame = (62.0, 10.0, size[0] - 14, size[1] - 50)
    xs = [p.x for s in series for p in s.points]
    ys = [v for s in series for p in s.points for v in (p.value, p.low, p.high)]
    x_low, x_high, x_ticks = _range([0.0, 1.0] if unit_square else xs, 6)
    y_low, y_high, y_ticks = _range([0.0, 1.0] if unit_square else [*ys, *([0.0] if zero else [])], 6)
    to_x, to_y = _scaled(x_low, x_high, frame[0], frame[2]), _scaled(y_low, y_high, frame[3], frame[1])
    drawn = []
    for number, one in enumerate(series):
        known = [point for point in one.points if np.isfinite(point.value)]
        path = "M" + "L".join(f"{to_x(p.x):.1f},{to_y(p.value):.1f}" for p in known) if known and one.joined else ""
        marks = [_upright(p, to_x(p.x), to_y, one.label) for p in known] if one.marked else []
        drawn.append(_drawn(one, number, path, marks))
    ticks = x_names or [(tick, _number(tick)) for tick in x_ticks]
    return Plot(
        title,
        _described(drawn),
        *size,
        frame,
        [Tick(to_x(at), text) for at, text in ticks],
        [Tick(to_y(tick), _number(tick)) for tick in y_ticks],
        x_label,
        y_label,
        drawn,
        zero_y=to_y(0.0) if zero else None,
    )


def _drawn(series: Series, number: int, path: str, marks: list[Mark]) -> Drawn:
    marker = MARKERS[number % len(MARKERS)]
    return Drawn(series.label, number % COLOURS, marker, series.dashed, path, marks)


def _described(drawn: Sequence[Drawn]) -> str:
    """The plot in words, for those who do not see it; long ones are in the tables."""
    said = [mark.said for series in drawn for mark in series.marks]
    return "; ".join(said[:40]) or ", ".join(series.label for series in drawn)


def _across(point: Point, to_x: Callable[[float], float], y: float, name: str, form: str) -> Mark:
    low, high = (point.low, point.high) if np.isfinite(point.low) else (point.value, point.value)
    return Mark(to_x(point.value), y, to_x(low), y, to_x(high), y, f"{name}: {_interval(point, form)}")


def _upright(point: Point, x: float, to_y: Callable[[float], float], name: str) -> Mark:
    low, high = (point.low, point.high) if np.isfinite(point.low) else (point.value, point.value)
    return Mark(x, to_y(point.value), x, to_y(low), x, to_y(high), f"{name}, {point.x:g}: {_interval(point, '.3g')}")


def _interval(point: Point, form: str) -> str:
    text = f"{point.value:{form}}"
    return text if not np.isfinite(point.low) else f"{text}, {point.low:{form}} to {point.high:{form}}"


def _range(values: Sequence[float], bins: int) -> tuple[float, float, list[float]]:
    """The axis's ends and its ticks."""
    from matplotlib.ticker import MaxNLocator

    finite = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    pad = 0.04 * (high - low) or 0.5
    if (low, high) == (0.0, 1.0):
        pad = 0.0
    ticks = [float(t) for t in MaxNLocator(bins).tick_values(low, high) if low - pad <= t <= high + pad]
    return low - pad, high + pad, ticks


def _scaled(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _number(value: float) -> str:
    text = f"{value:.6g}"
    return text.replace("-", "−")
