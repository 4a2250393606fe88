"""Where the cells of a composite lie, and what the nine positions are called."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

from transformers_agci.data.images import MAX_PIXELS
from transformers_agci.errors import InputError, short

# Row-major: the name of cell k is POSITIONS[k] (paper, position probe).
POSITIONS: tuple[str, ...] = (
    "top_left",
    "top_center",
    "top_right",
    "left",
    "center",
    "right",
    "bottom_left",
    "bottom_center",
    "bottom_right",
)


Shape = tuple[int, int]  # rows, columns of a grid


class Box(NamedTuple):
    """A rectangle on the canvas in pixels; `right` and `bottom` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


def largest_box(canvas: int, gutter: float, cells: int) -> int:
    """The side of the boxes where `cells` of them, with gutters between and around them, fill the canvas.

    >>> [largest_box(840, 7.2, cells) for cells in (2, 3, 4, 5)]
    [409, 270, 201, 159]
    """
    if not math.isfinite(gutter) or canvas > MAX_PIXELS:
        raise InputError(f"A grid needs finite sizes, but the canvas is {short(canvas)} px and the gutter {gutter} px.")
    return int(max(cells, canvas - (cells + 1) * gutter) // cells)  # the product may be infinite


@dataclass(frozen=True)
class Grid:
    """A square canvas with `rows` x `cols` equal square boxes; all lengths are pixels.

    The defaults are the published geometry. Its samples' boxes are anti-aliased rectangles centred at 142.8, 420
    and 697.2 on both axes; boxes of 270 px there cover the same pixels (8-278, 285-555, 562-832).
    Raises InputError when the boxes do not fit on the canvas.

    >>> [round(box.left, 1) for box in Grid().boxes()[:3]]
    [7.8, 285.0, 562.2]
    >>> Grid(canvas=252, box=84, margin=0, gutter=0).boxes()[4]
    Box(left=84, top=84, right=168, bottom=168)
    """

    canvas: int = 840
    box: int = 270
    margin: float = 7.8
    gutter: float = 7.2
    rows: int = 3
    cols: int = 3

    def __post_init__(self) -> None:
        if min(self.canvas, self.box, self.rows, self.cols) < 1 or min(self.margin, self.gutter) < 0:
            raise InputError(f"A grid needs positive sizes and no negative margin or gutter, but got {self}.")
        if not math.isfinite(self.margin + self.gutter):
            raise InputError(f"A grid's margin and gutter must be finite numbers of pixels, but got {self}.")
        if self.canvas**2 > MAX_PIXELS:
            raise InputError(
                f"A canvas of {self.canvas}x{self.canvas} px has more than the {MAX_PIXELS} pixels of any image."
            )
        cells = max(self.rows, self.cols)
        needed = self.margin + cells * self.box + (cells - 1) * self.gutter
        if needed > self.canvas + 1e-6:
            raise InputError(
                f"{cells} boxes of {self.box} px with gutters of {self.gutter:g} px and a margin of {self.margin:g} px "
                f"need {needed:g} px, but the canvas has {self.canvas} px: choose a smaller box or gutter."
            )

    @classmethod
    def centred(cls, canvas: int, box: int, gutter: float, rows: int = 3, cols: int = 3) -> "Grid":
        """The grid whose boxes stand in the middle of the canvas: the margin is what the boxes leave over.

        >>> Grid.centred(840, 270, 7.2).margin
        7.8
        """
        if canvas > MAX_PIXELS or box > MAX_PIXELS:  # far too large for any grid, perhaps for a float
            raise InputError(f"A grid of {short(canvas)} px with boxes of {short(box)} px is larger than any image.")
        margin = (canvas - max(rows, cols) * box - (max(rows, cols) - 1) * gutter) / 2
        if margin < 0:
            raise InputError(
                f"{max(rows, cols)} boxes of {box} px with gutters of {gutter:g} px do not fit on a canvas of "
                f"{canvas} px: choose a smaller box or gutter."
            )
        return cls(canvas, box, round(margin, 6), gutter, rows, cols)

    @property
    def shape(self) -> Shape:
        """(rows, columns)."""
        return self.rows, self.cols

    def __len__(self) -> int:
        return self.rows * self.cols

    def boxes(self) -> list[Box]:
        """The boxes of all cells, row-major; fewer rows than columns (or the other way) stand in the middle."""
        return list(self._boxes)

    @functools.cached_property
    def _boxes(self) -> tuple[Box, ...]:
        step, most = self.box + self.gutter, max(self.rows, self.cols)
        left = self.margin + (most - self.cols) * step / 2
        top = self.margin + (most - self.rows) * step / 2
        corners = [(left + column * step, top + row * step) for row in range(self.rows) for column in range(self.cols)]
        return tuple(Box(x, y, x + self.box, y + self.box) for x, y in corners)

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (width, height) that an image of `size` gets: aspect kept, longer side as long as a box."""
        scale = self.box / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def placed(self, size: tuple[int, int], cell: int) -> tuple[int, int]:
        """The whole pixel (left, top) at which an image of the fitted `size` stands centred in `cell`."""
        box = self._boxes[cell]
        return round((box.left + box.right - size[0]) / 2), round((box.top + box.bottom - size[1]) / 2)
