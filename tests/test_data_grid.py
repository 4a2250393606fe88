"""Geometry of the grid, insertion of the target, and golden composites."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_agci.data.composites import alone, compose, encode_jpeg, fit, with_target
from transformers_agci.data.grid import POSITIONS, Grid, largest_box
from transformers_agci.errors import InputError

GOLDEN = Path(__file__).parent / "reference" / "composites"

SIZES = [(512, 384), (384, 512), (300, 300), (640, 80), (90, 500), (200, 150), (270, 270), (64, 64), (1000, 700)]

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
grids = st.builds(
    Grid.centred,
    canvas=st.integers(600, 1200),
    box=st.integers(1, 150),
    gutter=st.floats(0, 20),
    rows=st.integers(1, 3),
    cols=st.integers(1, 3),
)


def test_published_boxes_cover_these_pixels() -> None:
    grid = Grid()
    spans = [(grid.placed((270, 270), cell)[0], grid.placed((270, 270), cell)[1]) for cell in (0, 1, 2, 3, 8)]
    assert spans == [(8, 8), (285, 8), (562, 8), (8, 285), (562, 562)]
    assert [box.left for box in grid.boxes()[:3]] == pytest.approx([7.4, 284.7, 561.9], abs=0.5)
    assert len(POSITIONS) == len(set(POSITIONS)) == len(grid) == 9


@settings(deadline=None)
@given(grids)
def test_boxes_are_disjoint_on_the_canvas_and_symmetric(grid: Grid) -> None:
    boxes = grid.boxes()
    assert len(boxes) == grid.rows * grid.cols
    for number, box in enumerate(boxes):
        assert box.right - box.left == pytest.approx(grid.box)
        assert box.bottom - box.top == pytest.approx(grid.box)
        assert min(box.left, box.top) >= 0
        assert max(box.right, box.bottom) <= grid.canvas + 1e-6
        for other in boxes[:number]:
            assert other.right <= box.left + 1e-9 or other.bottom <= box.top + 1e-9
    longer = max(grid.rows, grid.cols)
    last = grid.margin + longer * grid.box + (longer - 1) * grid.gutter
    assert grid.canvas - last == pytest.approx(grid.margin, abs=1e-5)


@settings(deadline=None)
@given(grids, sizes)
def test_an_image_keeps_its_aspect_fills_its_box_and_is_centred(grid: Grid, size: tuple[int, int]) -> None:
    width, height = grid.fitted(size)
    assert max(width, height) == grid.box
    scale = grid.box / max(size)
    assert abs(width - max(1, size[0] * scale)) <= 0.5
    assert abs(height - max(1, size[1] * scale)) <= 0.5
    for cell, box in enumerate(grid.boxes()):
        left, top = grid.placed((width, height), cell)
        assert abs((left + width / 2) - (box.left + box.right) / 2) <= 0.5 + 1e-6
        assert abs((top + height / 2) - (box.top + box.bottom) / 2) <= 0.5 + 1e-6


@settings(deadline=None)
@given(st.lists(st.integers(), min_size=8, max_size=8), st.integers(0, 8))
def test_the_target_is_inserted_and_the_distractors_keep_their_order(distractors: list[int], k: int) -> None:
    cells = with_target("target", distractors, k)
    assert cells[k] == "target"
    assert cells[:k] + cells[k + 1 :] == distractors
    assert alone("target", k) == [None] * k + ["target"] + [None] * (8 - k)


@pytest.mark.parametrize("k", [-1, 9])
def test_a_cell_that_does_not_exist_is_refused(k: int) -> None:
    with pytest.raises(InputError, match="cells are 0 to 8"):
        with_target("t", list("abcdefgh"), k)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grid(canvas=800),
        lambda: Grid(box=0),
        lambda: Grid(margin=-1),
        lambda: Grid.centred(840, 300, 0),
        lambda: compose([None] * 4, Grid()),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_sentence(make: Callable[..., Any]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def painted(number: int) -> Image.Image:
    """An image with an asymmetric pattern, another size and colour for each number."""
    width, height = SIZES[number]
    image = Image.new("RGB", (width, height), (30 * number, 255 - 25 * number, 120))
    image.paste((255, 240, 0), (0, 0, width // 3, height // 4))
    image.paste((0, 0, 60 + 20 * number), (width // 2, height // 2, width, height * 3 // 4))
    return image


@pytest.mark.parametrize("k", range(9))
def test_golden_composites_pixel_by_pixel(k: int) -> None:
    """The recorded canvases were looked at once; `python tests/test_data_grid.py` records them anew."""
    made = compose(with_target(painted(0), [painted(n) for n in range(1, 9)], k), Grid())
    with Image.open(GOLDEN / f"probe_{k}.png") as golden:
        assert golden.convert("RGB").tobytes() == made.tobytes()


def test_golden_target_alone_pixel_by_pixel() -> None:
    made = compose(alone(painted(0), 5), Grid(), "white")
    with Image.open(GOLDEN / "similarity_5.png") as golden:
        assert golden.convert("RGB").tobytes() == made.tobytes()


def test_a_composite_is_what_a_slow_definition_says() -> None:
    """Images that need no resizing: every pixel of the canvas is known without any resampling."""
    grid = Grid(canvas=30, box=8, margin=2, gutter=1)
    images = [Image.new("RGB", (8, 4 + cell % 3 * 2), (cell, 2 * cell, 255 - cell)) for cell in range(9)]
    made = compose(images, grid, "#0a0b0c")
    for x in range(30):
        for y in range(30):
            expected = (10, 11, 12)
            for cell, picture in enumerate(images):
                left, top = 2 + cell % 3 * 9, 2 + cell // 3 * 9 + (8 - picture.height) // 2
                if left <= x < left + 8 and top <= y < top + picture.height:
                    expected = (cell, 2 * cell, 255 - cell)
            assert made.getpixel((x, y)) == expected


def test_transparent_parts_show_the_background() -> None:
    glass = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert fit(glass, Grid(), "blue").getpixel((5, 5)) == (0, 0, 255)
    palette = Image.new("P", (10, 10), 0)
    palette.info["transparency"] = 0
    assert fit(palette, Grid(), "lime").getpixel((5, 5)) == (0, 255, 0)


def test_jpeg_is_baseline_quality_75_with_halved_chroma() -> None:
    data = encode_jpeg(compose([painted(0)] + [None] * 8, Grid()))
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (840, 840)
        assert image.mode == "RGB"
        assert image.quantization[0][:8] == [8, 6, 5, 8, 12, 20, 26, 31]
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
        assert "progressive" not in image.info


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for cell in range(9):
        cells = with_target(painted(0), [painted(n) for n in range(1, 9)], cell)
        compose(cells, Grid()).save(GOLDEN / f"probe_{cell}.png", optimize=True)
    compose(alone(painted(0), 5), Grid()).save(GOLDEN / "similarity_5.png", optimize=True)


def test_a_gutter_beyond_every_canvas_leaves_the_smallest_box() -> None:
    assert largest_box(840, 1e308, 3) == 1  # four of them are infinite
    with pytest.raises(InputError, match="choose a smaller box or gutter"):
        Grid(box=largest_box(840, 1e308, 3), gutter=1e308)
