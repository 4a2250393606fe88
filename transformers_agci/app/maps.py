"""The nine answers as a map in HTML: one button per cell, P(Yes) as its colour, the figures as its text."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from transformers_agci.app.session import CellAnswer
from transformers_agci.data.grid import POSITIONS

COLOURS = "cividis"  # reads alike with every kind of colour blindness, and in grey
DIFFERENCE_COLOURS = "PuOr"

CSS = """
.agci-maps {display: flex; flex-wrap: wrap; gap: 1.5rem;}
.agci-map {border: 0; margin: 0; padding: 0; min-width: 13rem; flex: 1;}
.agci-map figcaption {font-weight: 600; margin-bottom: .4rem;}
.agci-map .cells {display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 3px; max-width: 24rem;}
.agci-map button {aspect-ratio: 1; border: 3px solid transparent; border-radius: 4px; cursor: pointer;
  margin: 0 !important; padding: 2px; font: inherit; font-size: .95rem; font-variant-numeric: tabular-nums;
  line-height: 1.3;}
.agci-map button b {display: block; color: inherit !important; font-size: 1.15em;}
.agci-map button:focus-visible {outline: 3px solid #d55e00; outline-offset: 1px;}
.agci-map button[aria-pressed=true] {border-color: #d55e00;}
.agci-map p {margin: .4rem 0 0; font-size: .9em;}
"""

# The page is told which cell was clicked; a click anywhere else on the map does nothing.
ON_LOAD = """
element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-cell]');
  if (cell) trigger('select', {index: Number(cell.dataset.cell), value: cell.dataset.cell});
});
"""


LEAST_WIDTH = 0.5  # logits: a difference map's colours span at least so much either way


class _Cell(NamedTuple):
    """The two lines of a cell and its colour, RGBA from 0 to 1."""

    large: str
    small: str
    colour: tuple[float, float, float, float]


def map_of(answers: Sequence[CellAnswer], title: str, chosen: int) -> str:
    """P(Yes) as a percentage and the margin in every cell, and how far the cells lie apart below."""
    margins = [each.margin for each in answers]
    yes = sum(each.text.startswith("Yes") for each in answers)
    cells = [
        _Cell(
            f"{100 * each.yes_probability:.0f}\N{NO-BREAK SPACE}%",
            signed(each.margin),
            colormaps[COLOURS](each.yes_probability),
        )
        for each in answers
    ]
    note = f"Yes in {yes} of {len(answers)} places; margins {signed(min(margins))} to {signed(max(margins))}"
    return _figure(title, cells, note, chosen)


def difference_of(baseline: Sequence[CellAnswer], changed: Sequence[CellAnswer], chosen: int) -> str:
    """How far each margin moves, about their mean: a shift of all alike is no repair, and shows no colour."""
    moved = [after.margin - before.margin for before, after in zip(baseline, changed, strict=True)]
    mean = sum(moved) / len(moved)
    widest = max(LEAST_WIDTH, *(abs(each - mean) for each in moved))
    scale = Normalize(-widest, widest)
    cells = [
        _Cell(signed(each - mean), f"of {signed(each)}", colormaps[DIFFERENCE_COLOURS](scale(each - mean)))
        for each in moved
    ]
    return _figure("margin moved, less the mean", cells, f"mean {signed(mean)}: what all places share", chosen)


def side_by_side(figures: Sequence[str]) -> str:
    """The maps in one row where the window is wide enough."""
    return f'<div class="agci-maps">{"".join(figures)}</div>'


def signed(value: float) -> str:
    """Two digits behind the point, always with a sign, a minus as typographers set it."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _figure(title: str, cells: Sequence[_Cell], note: str, chosen: int) -> str:
    drawn = "".join(_button(k, cell, k == chosen) for k, cell in enumerate(cells))
    return (
        f'<figure class="agci-map"><figcaption>{escape(title)}</figcaption>'
        f'<div class="cells" role="group" aria-label="{escape(title)}">{drawn}</div>'
        f"<p>{escape(note)}</p></figure>"
    )


def _button(k: int, cell: _Cell, chosen: bool) -> str:
    red, green, blue, _ = cell.colour
    ink = "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#fff"
    label = f"{POSITIONS[k].replace('_', ' ')}: {cell.large}, {cell.small}"
    return (
        f'<button type="button" data-cell="{k}" aria-pressed="{str(chosen).lower()}" aria-label="{escape(label)}" '
        f'style="background:{to_hex((red, green, blue))};color:{ink}"><b>{escape(cell.large)}</b>'
        f"{escape(cell.small)}</button>"
    )
