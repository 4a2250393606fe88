"""Nine maps of one kind, one per place of the target, on one scale and with the target's box outlined."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transformers_agci.report.heatmap import GREY, INK, Scale, colour_bar, image_path, save_figure, with_plain_words
from transformers_agci.report.overlay import OUTLINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 2.3


class PlaceMap(NamedTuple):
    """Values [rows, cols] (None: no image with the target there), words, and the target's box as fractions 0..1.

    `box` is (left, top, right, bottom).
    """

    values: NDArray[np.floating] | None
    title: str
    note: str
    box: tuple[float, float, float, float]


def draw_map_grid(
    maps: Sequence[PlaceMap], path: str | Path, scale: Scale, title: str = "", footnote: str = ""
) -> Path:
    """The 3x3 panel of nine maps, row-major, with one colour bar."""
    target = image_path(path)
    save_figure(map_grid_figure(maps, scale, title, footnote), target)
    return target


def map_grid_figure(maps: Sequence[PlaceMap], scale: Scale, title: str = "", footnote: str = "") -> "Figure":
    """The same as a figure, no file."""
    return _figure(maps, 3, scale, title=title, footnote=footnote)


def draw_one(maps: Sequence[PlaceMap], index: int, path: str | Path, scale: Scale) -> Path:
    """Map `index` alone, on the scale of all nine."""
    target = image_path(path)
    save_figure(_figure([maps[index]], 1, scale), target)
    return target


def common_scale(values: Iterable[NDArray[np.floating] | None], label: str, diverging: bool = False) -> Scale:
    """From zero to the largest value; a `diverging` one is as wide on either side as the largest amount."""
    most = max((float(np.abs(part).max()) for part in values if part is not None), default=1.0) or 1.0
    return Scale(-most if diverging else 0.0, most, label, diverging)


def _figure(maps: Sequence[PlaceMap], columns: int, scale: Scale, *, title: str = "", footnote: str = "") -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-len(maps) // columns)
    words = 0.16 * (footnote.count("\n") + 1) + (0.25 * (title.count("\n") + 1) if title else 0)  # inches
    figure = Figure(
        figsize=(PANEL_INCHES * columns + 0.5, (PANEL_INCHES + 0.55) * rows + 0.7 + words),
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, compress=True),
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    drawn: Any = None
    for axes, place in zip(grid.ravel(), maps, strict=True):
        shown = _draw_place(axes, place, scale)
        drawn = drawn if shown is None else shown
    if drawn is not None:
        colour_bar(figure, drawn, list(grid.ravel()), scale.label, aspect=12 * columns)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, fontweight="bold")
    if footnote:
        figure.supxlabel(footnote, fontsize=8, color=GREY)
    return with_plain_words(figure)


def _draw_place(axes: "Axes", place: PlaceMap, scale: Scale) -> Any:
    from matplotlib.patches import Rectangle

    axes.set_title(place.title, fontsize=10, color=INK, pad=15 if place.note else 5)
    axes.text(0.5, 1.02, place.note, transform=axes.transAxes, ha="center", va="bottom", fontsize=7.8, color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    if place.values is None:
        axes.text(0.5, 0.5, "no image", transform=axes.transAxes, ha="center", va="center", fontsize=9, color=GREY)
        return None
    rows, cols = place.values.shape
    shown = axes.imshow(place.values, cmap=scale.colours, vmin=scale.low, vmax=scale.high, interpolation="nearest")
    left, top, right, bottom = place.box
    axes.add_patch(
        Rectangle(
            (left * cols - 0.5, top * rows - 0.5),
            (right - left) * cols,
            (bottom - top) * rows,
            fill=False,
            edgecolor=OUTLINE,
            linewidth=1.8,
            clip_on=False,
        )
    )
    return shown
