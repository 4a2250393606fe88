"""Building sets: the kinds of source give one set, what is drawn, and what the command prints."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.build import build
from transformers_agci.data.composites import alone, compose, encode_jpeg, with_target
from transformers_agci.data.draws import draw
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.probe_rows import read_probe_rows

pytest.importorskip("datasets")
import small_sets
from small_sets import SMALL, as_folder, as_img2dataset_tars, as_table, content, good_pairs, options

built = small_sets.built  # fixture
source = small_sets.source  # fixture


def as_img2dataset_parquet(pairs: list[tuple[str, str, bytes]], folder: Path) -> Path:
    """The image as plain binary under `jpg`."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    rows = [{"caption": caption, "key": key, "jpg": data} for key, caption, data in pairs]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "00000.parquet")
    return folder


KINDS = {
    "folder": as_folder,
    "folder_jsonl": lambda pairs, folder: as_folder(pairs, folder, "metadata.jsonl"),
    "webdataset": as_img2dataset_tars,
    "parquet": as_table,
    "img2dataset_parquet": as_img2dataset_parquet,
    "arrow": lambda pairs, folder: as_table(pairs, folder, "arrow"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_set(kind: str, built: Path, tmp_path: Path) -> None:
    made = KINDS[kind](good_pairs(), tmp_path / "source")
    summary = build(options(made, tmp_path / "out"))
    assert content(tmp_path / "out") == content(built)
    assert (summary.items, summary.composites, summary.dropped) == (14, 126, {})


def test_rows_and_composites_are_what_the_draw_says(built: Path) -> None:
    """Every composite against its definition, before and after the JPEG."""
    rows = read_probe_rows(built / "set.json")
    negatives = read_probe_rows(built / "set_negatives.json")
    pairs = good_pairs()
    cells = [Image.open(io.BytesIO(data)) for _, _, data in pairs]
    assert len(rows) == len(negatives) == 14 * 9
    for number, (row, negative) in enumerate(zip(rows, negatives, strict=True)):
        item, k = divmod(number, 9)
        drawn = draw(item, 14, seed=0)
        assert (row.id, row.image, row.position, row.answer) == (number, f"{item:09d}_{k}.jpg", POSITIONS[k], "Yes")
        assert row.caption == pairs[item][1]
        assert (negative.id, negative.image, negative.position) == (row.id, row.image, row.position)
        assert (negative.caption, negative.answer) == (pairs[drawn.absent][1], "No")
        expected = compose(with_target(cells[item], [cells[d] for d in drawn.distractors], k), SMALL)
        assert (built / "set_images" / row.image).read_bytes() == encode_jpeg(expected)


def test_the_similarity_set_shows_the_target_alone(source: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path, kind="similarity", name="sim"))
    assert not (tmp_path / "sim_negatives.json").exists()
    rows = read_probe_rows(tmp_path / "sim.json")
    target = Image.open(source / "000000003.jpg")
    for k, row in enumerate(rows[27:36]):
        expected = encode_jpeg(compose(alone(target, k), SMALL))
        assert (tmp_path / "sim_images" / row.image).read_bytes() == expected


@settings(deadline=None)
@given(st.integers(10, 40), st.integers(0, 3), st.data())
def test_a_draw_never_repeats_and_never_holds_the_target(pool: int, seed: int, data: bytes) -> None:
    item = data.draw(st.integers(0, pool - 1))
    drawn = draw(item, pool, seed)
    everything = {item, drawn.absent, *drawn.distractors}
    assert len(everything) == 10
    assert everything <= set(range(pool))


def test_draws_are_uniform_and_stay_as_they_are() -> None:
    counts = Counter(d for item in range(12) for seed in range(500) for d in draw(item, 12, seed).distractors)
    absent = Counter(draw(item, 12, seed).absent for item in range(12) for seed in range(500))
    assert max(counts.values()) < 1.06 * min(counts.values())
    assert max(absent.values()) < 1.25 * min(absent.values())
    assert draw(0, 10_000, seed=0) == EXPECTED_DRAW


# recorded once: another order of drawing would change every set that users have built
EXPECTED_DRAW = ((5825, 8675, 3069, 960, 3768, 9151, 4946, 865), 6595)


def test_a_few_items_draw_their_distractors_from_a_larger_pool(source: Path, built: Path, tmp_path: Path) -> None:
    summary = build(options(source, tmp_path, items=2, pool=14))
    assert summary.items == 2
    whole = content(built)
    few = content(tmp_path)
    assert {name: whole[name] for name in few if name.endswith(".jpg")} == {
        name: data for name, data in few.items() if name.endswith(".jpg")
    }
    assert whole["set.json"].startswith(few["set.json"])
    assert len(read_probe_rows(tmp_path / "set_negatives.json")) == 18


def test_each_source_is_decoded_once_and_each_composite_encoded_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.data import painting, screening

    calls = Counter()
    for module, name in ((screening, "decode_image"), (painting, "encode_jpeg")):
        real = getattr(module, name)

        def counted(*args: Any, real: Callable[..., Any] = real, name: str = name, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    build(options(source, tmp_path))
    assert calls == {"decode_image": 14, "encode_jpeg": 14 * 9}


def test_the_command_prints_what_it_built(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "build-similarity", "--source", str(source), "--output_dir", str(tmp_path), "--items", "2"]
    assert main([*arguments, "--workers", "1", "--canvas", "90", "--box", "28", "--gutter", "1"]) == 0
    assert "2 items, 18 composites" in capsys.readouterr().out
    with Image.open(tmp_path / "similarity_840_840_images" / "000000001_8.jpg") as image:
        assert image.size == (90, 90)
