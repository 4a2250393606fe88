"""Maps laid over the image that they are about: the image, then one panel per map, all on one scale."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transformers_agci.data.grid import Box
from transformers_agci.errors import clipped
from transformers_agci.report.heatmap import GREY, INK, colour_bar, with_plain_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 2.9
COLOURS = "viridis"
COVER = 0.7  # opacity of the colours over the grey image
NOTE_LETTERS = 40  # of a line above a panel: more would run into its neighbour
PALEST = 0.35  # how far the grey image is lightened: what is dark shall be the map's doing
OUTLINE = "#e6007e"  # no colour of viridis, readable on all of them


class Overlay(NamedTuple):
    """One map over the image: values [height, width] at the image's pixels, words, and a box to outline."""

    values: NDArray[np.floating]
    title: str
    note: str = ""
    box: Box | None = None


def overlay_figure(
    image: Image.Image,
    overlays: Sequence[Overlay],
    *,
    label: str,
    title: str = "",
    footnote: str = "",
    top: float | None = None,
) -> "Figure":
    """The image, and every map over a grey copy of it.

    The scale goes from zero to `top`, without it to the largest value: a map that is nearly flat looks flat.
    """
    panels = 1 + len(overlays)
    notes = max(overlay.note.count("\n") + 1 if overlay.note else 0 for overlay in overlays)
    heading = textwrap.wrap(title, 28 * panels, max_lines=2, placeholder=" …")
    tall = PANEL_INCHES * min(2.0, image.height / image.width)
    figure = _figure(panels, tall + 0.95 + 0.15 * notes + 0.25 * len(heading) + (0.2 if footnote else 0))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _plain(axes[0], "image", notes)
    axes[0].imshow(image)
    _outline(axes[0], overlays[0].box)
    ceiling = top if top is not None else max(float(np.max(overlay.values)) for overlay in overlays)
    grey = PALEST * 255 + (1 - PALEST) * np.asarray(image.convert("L"))
    drawn: Any = None
    for place, overlay in zip(axes[1:], overlays, strict=True):
        _plain(place, overlay.title, notes)
        place.imshow(grey, cmap="gray", vmin=0, vmax=255)
        drawn = _lay_over(place, overlay, ceiling or 1.0)
    colour_bar(figure, drawn, axes, label, aspect=16 * panels)
    if heading:
        figure.suptitle("\n".join(heading), fontsize=11.5, color=INK, fontweight="bold")
    if footnote:
        figure.supxlabel(footnote, fontsize=8, color=GREY)
    return with_plain_words(figure)


def _figure(panels: int, height: float) -> "Figure":
    """An empty figure for so many panels in a row, of this height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, compress=True)
    figure = Figure(figsize=(PANEL_INCHES * panels + 0.3, height), facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _lay_over(axes: "Axes", overlay: Overlay, top: float) -> Any:
    """The map's colours, its box and its note; returns what a colour bar needs."""
    drawn = axes.imshow(overlay.values, cmap=COLOURS, vmin=0, vmax=top, alpha=COVER, interpolation="nearest")
    _outline(axes, overlay.box)
    if overlay.note:
        note = "\n".join(clipped(line, NOTE_LETTERS) for line in overlay.note.split("\n"))
        words = axes.text(0.5, 1.02, note, transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color=GREY)
        words.set_in_layout(False)  # wide letters would push the panels apart
    return drawn


def _plain(axes: "Axes", title: str, note_lines: int) -> None:
    axes.set_title(title, fontsize=10.5, color=INK, pad=5 + 11 * note_lines)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(GREY)
        side.set_linewidth(0.5)


def _outline(axes: "Axes", box: Box | None) -> None:
    from matplotlib.patches import Rectangle

    if box is not None:
        corner = (box.left - 0.5, box.top - 0.5)  # imshow puts a pixel's centre on the whole number
        axes.add_patch(
            Rectangle(
                corner,
                box.right - box.left,
                box.bottom - box.top,
                fill=False,
                edgecolor=OUTLINE,
                linewidth=1.6,
                clip_on=False,
            )
        )
