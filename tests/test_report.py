"""The look of maps and tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from transformers_agci.errors import InputError
from transformers_agci.report import heatmap
from transformers_agci.report.heatmap import Panel, Scale, draw, image_path, scale_about_zero, scale_over, write_figure
from transformers_agci.report.overlay import Overlay, overlay_figure
from transformers_agci.report.table import CHANGE, NUMBER, PERCENT, POINTS, Style, format_table
from transformers_agci.statistics import Interval

SCALE = Scale(0, 100, "correct, %")


def panel(shape: tuple[int, int] = (3, 3), **changes: Any) -> Panel:
    values = np.linspace(0, 100, shape[0] * shape[1]).reshape(shape)
    texts = [f"{v:.0f}" for v in values.ravel()]
    return Panel(**({"values": values, "scale": SCALE, "title": "t", "note": "n = 5\nx", "texts": texts} | changes))


def test_table_columns_line_up() -> None:
    assert format_table(["position", "n"], [["left", "100"], ["center", "7"]]).splitlines() == [
        "position    n",
        "left      100",
        "center      7",
    ]


def test_columns_beyond_a_line_stand_in_a_table_below() -> None:
    wide = [[name, "a" * 50, "b" * 50, "c" * 30] for name in ("left", "center")]
    by_column = format_table(["position", "A", "B", "C"], wide).split("\n\n")
    assert [table.splitlines()[0].split() for table in by_column] == [["position", "A", "B"], ["position", "C"]]
    together = format_table(["position", "A", "B", "C"], wide, groups=(1, 2)).split("\n\n")
    assert [table.splitlines()[2].split() for table in together] == [
        ["center", "a" * 50],
        ["center", "b" * 50, "c" * 30],
    ]
    assert "\n\n" not in format_table(["position", "A"], [["left", "a" * 130]])
    with pytest.raises(ValueError, match="of 2 columns, but 3 stand"):  # the third would be in no table
        format_table(["position", "A", "B", "C"], wide, groups=(1, 1))


def test_estimates_have_their_unit_and_bounds_that_tell_apart() -> None:
    none, near = Interval(0.3, np.nan, np.nan, 1), Interval(0.0, -1e-6, 1e-6, 9)
    assert PERCENT.with_unit(none, "%") == "30.0 % [no interval]"
    assert PERCENT.with_unit(Interval(0.3, 0.25, 0.36, 9), "%") == "30.0 [25.0, 36.0] %"
    assert POINTS.write(near) == "0.0000 [-0.0001, +0.0001]"  # and not "[0.0, 0.0]"


@pytest.mark.parametrize(
    "style, interval, text",
    [
        (NUMBER, (-0.45, -0.89, -0.0014), "-0.45 [-0.89, -0.001]"),
        (CHANGE, (0.4, 0.0004, 0.8), "+0.40 [+0.0004, +0.80]"),
        (POINTS, (-0.0001, -0.1, 0.1), "0.0 [-10.0, +10.0]"),
        (PERCENT, (0.9, 0.0, 1.0), "90.0 [0.0, 100.0]"),
        (CHANGE, (0.5, 1e-17, 1.0), "+0.50 [0.00, +1.00]"),
    ],
    ids=["below zero", "above zero", "zero has no sign", "exactly zero", "zero but for rounding"],
)
def test_a_bound_shows_on_which_side_of_it_zero_lies(
    style: Style, interval: tuple[float, float, float], text: str
) -> None:
    assert style.write(Interval(*interval, 9)) == text


def test_scale_spans_the_intervals_and_stays_inside_its_limits() -> None:
    scale = scale_over([71.2, 88.0, float("nan"), 99.1], "x", 5, (0, 100))
    assert (scale.low, scale.high, scale.diverging) == (70, 100, False)


def test_difference_scale_is_centred_on_zero() -> None:
    scale = scale_about_zero([-2.2, 7.4], "x", 1)
    assert (scale.low, scale.high, scale.diverging) == (-8, 8, True)
    assert scale_about_zero([0.0], "x", 1).high == 1
    assert scale_about_zero([float("nan")], "x", 1).high == 1


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (5, 5), (20, 20)])
def test_a_map_of_any_grid_is_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    one = panel(shape) if shape != (20, 20) else panel(shape, texts=())
    path = draw([[one, None], [one, one]], tmp_path / "deep" / "map.png", "title", "foot\nnote")
    with Image.open(path) as image:
        assert image.size[0] > 800
        assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 20


def test_one_scale_has_one_colour_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []
    from matplotlib.figure import Figure

    original = Figure.colorbar
    monkeypatch.setattr(Figure, "colorbar", lambda *a, **k: bars.append(k["ax"]) or original(*a, **k))
    other = Scale(-5, 5, "difference", diverging=True)
    draw([[panel(), panel(), panel(scale=other)]], tmp_path / "map.png")
    assert [len(axes) for axes in bars] == [2, 1]


def test_cells_without_rows_stay_blank(tmp_path: Path) -> None:
    values = np.full((3, 3), 50.0)
    values[1, 1] = np.nan
    draw([[panel(values=values, texts=["50"] * 4 + [""] + ["50"] * 4)]], tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert (255, 255, 255) in [colour for _, colour in image.convert("RGB").getcolors(1 << 20)]


def test_the_same_map_is_the_same_file(tmp_path: Path) -> None:
    first, second = (draw([[panel()]], tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_words_on_colours_can_be_read() -> None:
    assert heatmap.ink_on((0.27, 0.0, 0.33, 1)) == "white"
    assert heatmap.ink_on((0.99, 0.9, 0.14, 1)) == "black"


def test_ink_keeps_the_contrast_that_wcag_asks_for_on_every_colour() -> None:
    shades = np.linspace(0, 1, 400)
    luminances = np.where(shades <= 0.03928, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    inks = [heatmap.ink_on((shade, shade, shade, 1)) for shade in shades]
    assert {"white", "black"} == set(inks)
    for luminance, ink in zip(luminances, inks, strict=True):
        assert (1.05 / (luminance + 0.05) if ink == "white" else (luminance + 0.05) / 0.05) >= 4.5


def test_path_of_a_image(tmp_path: Path) -> None:
    assert image_path(tmp_path / "map").name == "map.png"
    assert image_path("map.pdf").name == "map.pdf"
    with pytest.raises(InputError, match=r"cannot be drawn as '.docx'.*allowed: .*png"):
        image_path("map.docx")
    with pytest.raises(InputError, match="is a folder"):
        image_path(tmp_path)


def test_unwritable_image_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"map.png' cannot be written: .*; choose another path\.$"):
        draw([[panel()]], tmp_path / "file" / "map.png")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("odd", ["a\x19b", r"what $\frac$ costs"])
def test_words_out_of_a_data_file_are_drawn_as_they_are(odd: str, tmp_path: Path) -> None:
    """A control character has no sign in any font, and between two dollar signs matplotlib expects a formula."""
    one = panel(scale=Scale(0, 1, odd), title=odd, note=odd, texts=[odd] * 9)
    drawn = [draw([[one]], tmp_path / "heat.png", title=odd, footnote=odd)]
    overlay = Overlay(np.ones((8, 8)), odd, odd)
    figure = overlay_figure(Image.new("RGB", (8, 8)), [overlay], label=odd, title=odd)
    drawn.append(write_figure(figure, tmp_path / "over.png"))
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_a_figure_is_drawn_before_its_file_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second: whoever kills the run then finds no unfinished file."""
    found: list[list[Path]] = []
    drawn = Figure.savefig

    def watched(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn(figure, *args, **kwargs)
        found.append(list(tmp_path.iterdir()))

    monkeypatch.setattr(Figure, "savefig", watched)
    draw([[panel()]], tmp_path / "a.png")
    assert found == [[]]
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
