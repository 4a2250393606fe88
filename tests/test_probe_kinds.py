"""Probe sets beyond captions on 3x3: other grids, sizes, look-alikes, drawn sub-images, sequences, options."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.commands.data_build import add_probe_arguments
from transformers_agci.commands.parser import Parser
from transformers_agci.data.built_set import CONTENTS
from transformers_agci.data.draws import draw_near
from transformers_agci.data.grid import Grid
from transformers_agci.data.probe_rows import ProbeRow, place_fields, place_of, read_probe_rows
from transformers_agci.data.rendered import COLOURS, GLYPHS, SHAPES, WORDS, Figure, draw_figure, rendered_item
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.results import read_results

pytest.importorskip("datasets")
CANVAS = ["--canvas", "126", "--gutter", "0", "--quality", "90", "--workers", "1"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve different images with captions."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    lines = ["file_name,caption"]
    for number in range(12):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((80, 80), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,image {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


# kind -> options beyond the source, cells of the grid, rows per item that hold the right answer
KINDS: dict[str, tuple[list[str], bool, tuple[int, int]]] = {
    "2x2": (["--rows", "2", "--cols", "2"], True, (2, 2)),
    "5x5": (["--rows", "5", "--cols", "5", "--kind", "digits"], False, (5, 5)),
    "2x4": (["--rows", "2", "--cols", "4", "--distractors", "lookalike"], True, (2, 4)),
    "sizes": (["--target_sizes", "40", "20"], True, (3, 3)),
    "words": (["--kind", "words"], False, (3, 3)),
    "shapes": (["--kind", "shapes"], False, (3, 3)),
    "images": (["--kind", "images", "--cols", "3"], True, (1, 3)),
    "options": (["--kind", "options", "--cols", "3"], True, (1, 3)),
}


def build(folder: Path, kind: str, source: Path, *more: str) -> int:
    options, reads, _ = KINDS[kind]
    words = [*options, *(["--source", str(source)] if reads else []), *CANVAS, "--items", "2", *more]
    return main(["data", "build-probe", "--output_dir", str(folder), "--name", "s", *words])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_every_kind_is_built_alike_checked_probed_and_scored(
    kind: str, source: Path, tmp_path: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shape = KINDS[kind][2]
    cells = shape[0] * shape[1]
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        assert build(folder, kind, source) == 0
    hashes = [json.loads((folder / "s.manifest.json").read_text())["sha256"] for folder in folders]
    assert hashes[0] == hashes[1]
    data, images, no = folders[0] / "s.json", folders[0] / "s_images", folders[0] / "s_negatives.json"
    assert main(["data", "check", str(data), "--img_path", str(images)]) == 0
    assert "0 errors" in capsys.readouterr().out
    rows = read_probe_rows(data)
    assert {row.shape for row in rows} == {shape}
    assert [row.cell for row in rows] == list(range(cells)) * (len(rows) // cells)
    answers = tmp_path / "A.jsonl"
    words = ["--model_path", str(tiny_checkpoint("qwen2_5_vl")), "--device", "cpu", "--quiet"]
    words += ["--eval_file", str(data), "--img_path", str(images), "--answer_file", str(answers)]
    assert main(["probe", *words, *(["--negatives_file", str(no)] if no.exists() else [])]) == 0
    assert len(read(answers)) == len(rows) * (2 if no.exists() else 1)
    # A right answer to every row, whatever the tiny model said, is 100 % in every cell.
    right = tmp_path / "right.jsonl"
    right.write_text("".join(json.dumps(row | {"prediction": row["answer"]}) + "\n" for row in read(answers)))
    for file, all_right in ((answers, False), (right, True)):
        result = read_results(file)
        assert (result.shape, len(result.items)) == (shape, len(rows) // cells)
        assert result.yes is not None
        assert result.yes.correct.shape == (len(result.items), cells)
        assert not all_right or bool(result.yes.correct.all())
        assert main(["metrics", "--results_file", str(file), "--output_heatmap", str(tmp_path / "m.png")]) == 0


def test_options_are_asked_in_their_order_and_read_as_letters(source: Path, tmp_path: Path) -> None:
    assert build(tmp_path, "options", source) == 0
    rows = read(tmp_path / "s.json")
    assert [row["answer"] for row in rows[:3]] == ["A", "B", "C"]
    assert all(row["options"][k % 3] == row["caption"] for k, row in enumerate(rows))
    assert {tuple(sorted(row["options"])) for row in rows[:3]} == {tuple(sorted(rows[0]["options"]))}
    said = ["A. it", "(b)", "A", "C", "Both", "c"]  # right, right, wrong; wrong, unreadable, right
    file = tmp_path / "A.jsonl"
    file.write_text("".join(json.dumps(r | {"prediction": s}) + "\n" for r, s in zip(rows, said, strict=True)))
    yes = read_results(file).yes
    assert yes is not None
    assert yes.correct.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert yes.unreadable.tolist() == [[0, 0, 0], [0, 1, 0]]


def test_images_stand_in_the_order_of_their_row(source: Path, tmp_path: Path) -> None:
    assert build(tmp_path, "images", source) == 0
    rows = read(tmp_path / "s.json")
    target = rows[0]["images"][0]
    assert [row["images"].index(target) for row in rows[:3]] == [0, 1, 2]
    others = [[name for name in row["images"] if name != target] for row in rows[:3]]
    assert others[0] == others[1] == others[2]


def test_a_target_of_another_size_fills_less_of_its_box(source: Path, tmp_path: Path) -> None:
    assert build(tmp_path, "sizes", source) == 0
    filled = []
    for row in read_probe_rows(tmp_path / "s.json")[:18:9]:
        box = Grid.centred(126, 42, 0).boxes()[0]
        image = Image.open(tmp_path / "s_images" / row.image).convert("L")
        cell = np.asarray(image.crop(tuple(map(int, box))))
        filled.append(float((cell < 250).mean()))
    assert filled[1] == pytest.approx(filled[0] / 4, rel=0.25)
    assert [row["target_size"] for row in read(tmp_path / "s.json")[:18:9]] == [40, 20]


def test_lookalikes_are_the_nearest() -> None:
    colours = np.arange(20)[:, None].repeat(3, axis=1)
    drawn = draw_near(10, colours, seed=0, distractors=4)
    assert sorted(drawn.distractors) == [8, 9, 11, 12]
    assert drawn.absent not in (*drawn.distractors, 10)
    with pytest.raises(InputError, match="at least 6 good pairs"):
        draw_near(0, colours[:5], seed=0, distractors=4)


@pytest.mark.parametrize("item", range(30))
def test_a_conjunction_cannot_be_told_by_one_feature(item: int) -> None:
    made = rendered_item("shapes", item, seed=1, distractors=8)
    same_colour = [other for other in made.distractors if other.colour == made.target.colour]
    same_shape = [other for other in made.distractors if other.shape == made.target.shape]
    assert (len(same_colour), len(same_shape)) == (4, 4)
    assert not set(same_colour) & set(same_shape)
    assert made.absent not in made.distractors
    assert (made.absent.colour, made.absent.shape) == (same_shape[0].colour, same_colour[0].shape)


@pytest.mark.parametrize("kind", ["words", "digits"])
def test_texts_of_an_item_are_all_different(kind: Any) -> None:
    for item in range(30):
        made = rendered_item(kind, item, seed=0, distractors=24)
        assert len({made.target, *made.distractors, made.absent}) == 26


def test_drawn_figures_have_the_pixels_they_always_had() -> None:
    """No font and no library decides them, so their hash is the same everywhere."""
    assert set("".join(WORDS) + "0123456789") <= set(GLYPHS)
    figures = [Figure("", text=word) for word in (*WORDS, "0123456789")]
    figures += [Figure("", shape=shape, colour=colour) for shape in SHAPES for colour in COLOURS]
    digest = hashlib.sha256()
    for figure in figures:
        digest.update(draw_figure(figure, 56).tobytes())
    assert digest.hexdigest() == "e6fbb7bdb7f9f5305a9490422d3f3c03713e3864ed9a3d88a01ac380e6b011a4"
    rows = [rendered_item(kind, item, 0, 8) for kind in ("words", "digits", "shapes") for item in range(20)]
    assert (
        hashlib.sha256(repr(rows).encode()).hexdigest()
        == "794bac6f6542c563613a526eccdc82f4c6ff27c9376fa59d0f34f1458f67582c"
    )


def test_rows_of_fewer_cells_stand_in_the_middle() -> None:
    tops = [box.top for box in Grid.centred(100, 20, 0, rows=2, cols=5).boxes()]
    assert tops == [30.0] * 5 + [50.0] * 5
    assert [box.left for box in Grid.centred(100, 20, 0, rows=5, cols=1).boxes()] == [40.0] * 5


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (1, 4), (5, 5)])
def test_a_place_is_read_as_it_is_written(shape: tuple[int, int]) -> None:
    for cell in range(shape[0] * shape[1]):
        assert place_of(place_fields(shape, cell), "r:1") == (shape, cell)


GOOD = {"id": 1, "image": "a_0.jpg", "caption": "c", "grid": "2x2", "row": 0, "col": 1, "answer": "Yes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": "2by2"}, '"grid" must be like "4x4"'),
        ({"grid": [0, 3]}, '"grid" must be like "4x4"'),
        ({"grid": "999x999"}, '"grid" must be like "4x4"'),
        ({"grid": {"a": 1}}, '"grid" must be like "4x4"'),
        ({"col": 2}, '"col" must be a whole number from 0 to 1, but is 2'),
        ({"row": True}, '"row" must be a whole number from 0 to 1'),
        ({"grid": "3x3", "position": "center"}, "\"position\" is 'center', but row and col name top_center"),
        ({"images": "a.jpg"}, '"images" must be a list of texts'),
        ({"images": ["a.jpg", ""]}, '"images" must be a list of texts'),
        ({"images": ["a.jpg"] * 3}, '3 "images" need the grid 1x3, not 2x2'),
        ({"options": ["a", "b"]}, '"options" must be 2 to 9 texts and "grid" 1 x their number'),
        ({"grid": "1x2", "options": ["a", "b"], "answer": "A"}, "\"answer\" is 'A', but must be one of: B"),
    ],
)
def test_a_bad_place_is_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"^r\.json:7: ") as error:
        ProbeRow.parse(GOOD | change, "r.json:7")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "words", "--source", "x"], "--kind words draws its sub-images: omit --source"),
        ([], "--source is needed for --kind captions"),
        (["--kind", "digits", "--rows", "10", "--cols", "10"], "There are 90 digits only, too few for 99 distractors"),
        (["--kind", "words", "--rows", "1", "--cols", "1"], "A grid has 2 cells at least"),
        (
            ["--kind", "images", "--source", "x", "--rows", "2"],
            "--rows must be 1 and --cols 2 to 9, but they are 2 and 4",
        ),
        (["--kind", "options", "--source", "x", "--target_sizes", "9"], "--target_sizes are for composites"),
        (["--kind", "shapes", "--target_sizes", "500"], "--target_sizes must be 8 px to the box's 270 px"),
        (["--kind", "shapes", "--target_sizes", "50", "50"], "--target_sizes must differ"),
        (["--kind", "words", "--distractors", "lookalike"], "--distractors cannot be chosen for words"),
        (["--kind", "words", "--canvas", "30", "--gutter", "20"], "do not fit on a canvas of 30 px"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "build-probe", "--output_dir", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_forms_are_for_the_probe_only(
    source: Path, tmp_path: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path, "2x2", source) == 0
    words = ["--model_path", str(tiny_checkpoint("qwen2_5_vl")), "--eval_file", str(tmp_path / "s.json"), "--quiet"]
    words += ["--img_path", str(tmp_path / "s_images"), "--device", "cpu"]
    assert main(["similarity", *words, "--answer_file", str(tmp_path / "S.jsonl")]) == 2
    assert "s.json:1: this experiment takes composites of 3x3 sub-images only" in capsys.readouterr().err


def test_the_command_offers_every_kind() -> None:
    parser = Parser()
    add_probe_arguments(parser)
    (kind,) = (action for action in parser._actions if action.dest == "kind")
    assert kind.choices == CONTENTS
