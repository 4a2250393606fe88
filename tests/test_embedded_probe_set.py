"""The atlas and the probe set that is drawn from it."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_agci.data.draws import StreamName, random_stream, stream_seed
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.probe_rows import read_probe_rows
from transformers_agci.embedded import Atlas, build_probe_set
from transformers_agci.embedded.atlas import ATLAS_FOLDER, canvases, through_jpeg
from transformers_agci.embedded.probe_set import PROBE_STREAM, render_item, render_items
from transformers_agci.errors import InputError


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas()


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_atlas_has_400_different_names_and_images(atlas: Atlas) -> None:
    assert len(atlas) == len(set(atlas.names)) == len(atlas.emoji) == 400
    assert len({atlas.image(index).tobytes() for index in range(400)}) == 400
    assert all(0 < len(name.split()) <= 3 for name in atlas.names)


def test_neighbours_are_all_the_others_most_alike_first(atlas: Atlas) -> None:
    near = atlas.neighbours(7)
    assert sorted([7, *near]) == list(range(400))

    def differ(a: int, b: int) -> float:
        small = [np.asarray(atlas.image(i).resize((14, 14)).convert("RGBA"), float) for i in (a, b)]
        return float(np.abs(small[0] - small[1]).mean())

    assert np.mean([differ(7, other) for other in near[:40]]) < np.mean([differ(7, other) for other in near[-40:]])


def test_atlas_brings_its_licences() -> None:
    assert "Apache License" in (ATLAS_FOLDER / "LICENSE-noto-emoji").read_text()
    assert "Permission is hereby granted" in (ATLAS_FOLDER / "LICENSE-unicode-emoji-json").read_text()
    assert "Noto Emoji by Google" in (ATLAS_FOLDER / "README.md").read_text()


def test_probe_set_is_in_the_published_format(tmp_path: Path, atlas: Atlas) -> None:
    built = build_probe_set(tmp_path, items=2, seed=3)
    assert built.negatives is not None
    yes, no = read_probe_rows(built.rows), read_probe_rows(built.negatives)
    for rows, answer in ((yes, "Yes"), (no, "No")):
        assert [row.position for row in rows] == 2 * list(POSITIONS)
        assert {row.answer for row in rows} == {answer}
        assert [row.image for row in rows] == [f"{n:09d}_{k}.jpg" for n in range(2) for k in range(9)]
        assert [len({row.caption for row in rows[start : start + 9]}) for start in (0, 9)] == [1, 1]
        assert all(row.caption in atlas.names for row in rows)
    with Image.open(built.images / yes[0].image) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (252, 252), "RGB")


def test_captions_say_what_is_shown_and_what_is_not(atlas: Atlas, tmp_path: Path) -> None:
    built = build_probe_set(tmp_path, items=5)
    assert built.negatives is not None
    captions = [[row.caption for row in read_probe_rows(path)[::9]] for path in (built.rows, built.negatives)]
    for number, rendered in enumerate(render_items(atlas, (*PROBE_STREAM, 0), 5)):
        shown = [atlas.names[picture] for picture in rendered.item.shown]
        assert captions[0][number] == shown[0]
        assert captions[1][number] not in shown
        assert len(set(shown)) == 9


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_probe_set(tmp_path / name, items=2, seed=5)
    assert every_file(tmp_path / "a") == every_file(tmp_path / "b")
    build_probe_set(tmp_path / "c", items=2, seed=6)
    assert every_file(tmp_path / "a") != every_file(tmp_path / "c")


def test_a_longer_probe_set_begins_like_a_shorter_one(tmp_path: Path) -> None:
    short = build_probe_set(tmp_path / "short", items=1, negatives=False)
    long = build_probe_set(tmp_path / "long", items=2)
    assert long.rows.read_bytes().startswith(short.rows.read_bytes())
    assert short.negatives is None
    assert not (tmp_path / "short" / "embedded_probe_negatives.json").exists()


def test_training_canvases_are_drawn_as_composites_are(atlas: Atlas) -> None:
    """The training glues tiles together as arrays: the same pixels as the composite code gives."""
    rendered = render_item(atlas, PROBE_STREAM, 0)
    tiles = np.stack([np.asarray(tile) for tile in rendered.tiles])
    with Image.open(io.BytesIO(rendered.composite(0))) as composite:
        assert np.array_equal(through_jpeg(canvases(tiles)[0]), np.asarray(composite))


def test_streams_of_different_names_share_nothing() -> None:
    """NumPy's own seeds 0, [0] and [0, 0] are one stream; here every part of a name counts."""
    names: list[StreamName] = [("a",), ("a", 0), ("a", 0, 0), ("a", 1), ("b", 0), (*PROBE_STREAM, 0)]
    assert len({random_stream(*name).bytes(8) for name in names}) == len(names)
    assert random_stream("a", 0).bytes(8) == random_stream("a", "0").bytes(8)
    assert stream_seed("embedded", "weights", 0) == 6780772401873424022


def test_no_items_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one item, but items is 0"):
        build_probe_set(tmp_path, items=0)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, transformers_agci.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
