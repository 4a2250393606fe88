"""One look for every map of this project: panels of cells, a shared scale, the number and its interval in the cell.

Colours are safe for colour-blind readers: viridis for amounts (its order is kept in grey), purple - white - orange
for differences, always centred on zero.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transformers_agci.errors import InputError, printable
from transformers_agci.storage.atomic import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 2.9
MIN_COLUMNS = 1.4  # room for the words around a single panel
CELL_SHARE = 0.82  # of a cell's width that words may take; labels and gaps take some of the panel's inches
LETTER = 0.58  # width of a letter in font sizes
NOTE_INCHES = 0.15  # one line of a panel's note
DOTS_PER_INCH = 200
INK = "#1a1a1a"
GREY = "#5a5a5a"
COLUMN_NAMES = {3: ("left", "center", "right")}
ROW_NAMES = {3: ("top", "middle", "bottom")}


@dataclass(frozen=True)
class Scale:
    """What a colour means. Panels that hold the same scale share one colour bar.

    `low` and `high` are in the unit of the panels' values; a `diverging` scale must be symmetric about zero.
    """

    low: float
    high: float
    label: str
    diverging: bool = False

    @property
    def colours(self) -> str:
        """The name of matplotlib's colour map."""
        return "PuOr_r" if self.diverging else "viridis"


def scale_over(bounds: Sequence[float], label: str, step: float, limits: tuple[float, float]) -> Scale:
    """A scale that spans all `bounds` (the ends of the intervals), rounded outwards to `step`, inside `limits`.

    Spanning the intervals and not only the estimates keeps noise from looking like a pattern.
    """
    low, high = _finite_range(bounds, limits)
    return Scale(max(limits[0], np.floor(low / step) * step), min(limits[1], np.ceil(high / step) * step), label)


def scale_about_zero(bounds: Sequence[float], label: str, step: float) -> Scale:
    """A diverging scale as wide on either side as the furthest of `bounds`, rounded outwards to `step`."""
    low, high = _finite_range(bounds, (-step, step))
    reach = max(step, np.ceil(max(abs(low), abs(high)) / step) * step)
    return Scale(-reach, reach, label, diverging=True)


def _finite_range(bounds: Sequence[float], otherwise: tuple[float, float]) -> tuple[float, float]:
    finite = [b for b in bounds if np.isfinite(b)]
    return (min(finite), max(finite)) if finite else otherwise


@dataclass(frozen=True)
class Panel:
    """One map: values [rows, cols] (NaN cells stay blank), and per cell a large and a small text, row by row."""

    values: NDArray[np.floating]
    scale: Scale
    title: str
    note: str = ""
    texts: Sequence[str] = field(default=())
    subtexts: Sequence[str] = field(default=())


def draw(panels: Sequence[Sequence[Panel | None]], path: str | Path, title: str = "", footnote: str = "") -> Path:
    """Draw rows of panels (None = empty place) into one image; the suffix of `path` decides the format."""
    return write_figure(compose(panels, title, footnote), path)


def compose(panels: Sequence[Sequence[Panel | None]], title: str = "", footnote: str = "") -> "Figure":
    """The same as a figure, no file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, columns = len(panels), max(len(row) for row in panels)
    notes = max(panel.note.count("\n") + 1 if panel.note else 0 for row in panels for panel in row if panel)
    height = (PANEL_INCHES + 0.5 + NOTE_INCHES * notes) * rows + 0.6 + (0.3 if title else 0)
    figure = Figure(
        figsize=(PANEL_INCHES * max(columns, MIN_COLUMNS) + 0.4, height + 0.16 * (footnote.count("\n") + 1)),
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    drawn: dict[Scale, list[tuple[Axes, Any]]] = {}
    for axes_row, panel_row in zip(grid, panels, strict=True):
        for column, axes in enumerate(axes_row):
            panel = panel_row[column] if column < len(panel_row) else None
            if panel is None:
                axes.set_axis_off()
            else:
                drawn.setdefault(panel.scale, []).append((axes, _draw_panel(axes, panel, labelled=column == 0)))
    for scale, places in drawn.items():
        axes_of_scale, images = zip(*places, strict=True)
        colour_bar(
            figure, images[0], axes_of_scale, scale.label, aspect=15 + 8 * len(places) / rows, pad=0.02, shrink=0.95
        )
    if title:
        figure.suptitle(title, fontsize=12.5, color=INK, fontweight="bold")
    if footnote:
        figure.supxlabel(footnote, fontsize=8, color=GREY)
    return with_plain_words(figure)


def colour_bar(
    figure: Any,
    drawn: Any,
    axes: "Sequence[Axes]",
    label: str,
    *,
    aspect: float,
    pad: float = 0.03,
    shrink: float = 0.7,
) -> None:
    """One bar for the panels in `axes`, below them."""
    bar = figure.colorbar(drawn, ax=list(axes), location="bottom", pad=pad, shrink=shrink, aspect=aspect)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, length=2, color=GREY, labelcolor=INK)
    bar.outline.set_visible(False)


def image_path(path: str | Path) -> Path:
    """The file to draw to: ".png" where no suffix is given; an unknown suffix is refused before any work is done."""
    from matplotlib.backend_bases import FigureCanvasBase

    target = Path(path)
    if target.is_dir():
        raise InputError(f"'{path}' is a folder; give the file to draw to, for instance {target / 'heatmap.png'}.")
    if not target.suffix:
        return target.with_name(target.name + ".png")
    known = sorted(FigureCanvasBase.filetypes)
    if target.suffix[1:].lower() not in known:
        raise InputError(f"A map cannot be drawn as '{target.suffix}' ({path}); allowed: {', '.join(known)}.")
    return target


def with_plain_words(figure: "Figure") -> "Figure":
    """The figure; its words may come out of a data file: no control character is drawn, no dollar begins a formula."""
    from matplotlib.text import Text

    for found in figure.findobj(Text):
        text: Any = found
        text.set_parse_math(False)
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    return figure


def save_figure(figure: Any, target: Path) -> None:
    """Write a figure; InputError if the place cannot be written to."""
    with_plain_words(figure)
    metadata = {"Software": None} if target.suffix.lower() == ".png" else None
    drawn = io.BytesIO()  # drawing takes a second, in which a kill would leave an unfinished file behind
    figure.savefig(drawn, format=target.suffix[1:].lower(), dpi=DOTS_PER_INCH, metadata=metadata)
    write_output(target, drawn.getvalue())


def write_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure to `image_path` of `path`, and return the file."""
    target = image_path(path)
    save_figure(figure, target)
    return target


def minus(text: str) -> str:
    """A typographic minus sign for images, and no sign at zero.

    >>> minus("-1.0 to +0.0")
    '−1.0 to 0.0'
    """
    words = [
        word[1:] if word[:1] in "+-" and word[1:] and not word[1:].strip("0.") else word for word in text.split(" ")
    ]
    return " ".join(words).replace("-", "−")


def _draw_panel(axes: "Axes", panel: Panel, labelled: bool) -> Any:
    rows, columns = panel.values.shape
    image = axes.imshow(panel.values, cmap=panel.scale.colours, vmin=panel.scale.low, vmax=panel.scale.high)
    axes.set_title(
        panel.title,
        fontsize=10.5,
        color=INK,
        pad=5 + (72 * NOTE_INCHES * (panel.note.count("\n") + 1) if panel.note else 0),
    )
    if panel.note:
        axes.text(0.5, 1.02, panel.note, transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color=GREY)
    axes.set_xticks(range(columns), COLUMN_NAMES.get(columns, [str(c + 1) for c in range(columns)]))
    axes.set_yticks(range(rows), ROW_NAMES.get(rows, [str(r + 1) for r in range(rows)]) if labelled else [""] * rows)
    axes.tick_params(length=0, labelsize=8, labelcolor=GREY, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)
    if panel.texts:  # white rules between annotated cells
        axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        _write_cells(axes, panel, image)
    return image


def _write_cells(axes: "Axes", panel: Panel, image: Any) -> None:
    columns = panel.values.shape[1]
    large, small = (13.5, 7.8) if columns <= 3 else (9.5, 5.8)
    longest = max((len(line) for text in panel.subtexts for line in text.split("\n")), default=0)
    small = min(small, CELL_SHARE * 72 * PANEL_INCHES / columns / (LETTER * max(longest, 1)))
    for index, text in enumerate(panel.texts):
        row, column = divmod(index, columns)
        colour = ink_on(image.to_rgba(panel.values[row, column]))
        subtext = panel.subtexts[index] if panel.subtexts else ""
        axes.text(column, row - (0.1 if subtext else 0), text, ha="center", va="center", fontsize=large, color=colour)
        if subtext:
            axes.text(column, row + 0.24, subtext, ha="center", va="center", fontsize=small, color=colour)


def ink_on(rgba: Sequence[float]) -> str:
    """Black or white, whichever reads better on this colour (by relative luminance as in WCAG)."""
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"
