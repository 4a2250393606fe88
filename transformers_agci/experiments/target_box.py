"""Where the target's cell lies on a composite, told by the composite's size."""

from transformers_agci.data.grid import Box, Grid

PUBLISHED = Grid()


def target_box(cell: int, width: int, height: int) -> Box:
    """The box of cell 0..8 in pixels: the published geometry at 840x840, else a ninth of the image.

    >>> target_box(4, 252, 252)
    Box(left=84.0, top=84.0, right=168.0, bottom=168.0)
    """
    if (width, height) == (PUBLISHED.canvas, PUBLISHED.canvas):
        return PUBLISHED.boxes()[cell]
    row, col = divmod(cell, 3)
    return Box(col * width / 3, row * height / 3, (col + 1) * width / 3, (row + 1) * height / 3)
