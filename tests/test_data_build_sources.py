"""Bad pairs, captions, sources and options of a set to build: dropped with a reason, or one sentence."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.build import build
from transformers_agci.data.probe_rows import read_probe_rows
from transformers_agci.data.screening import Cell, Dropped, Seen, fingerprint, screen
from transformers_agci.data.sources import Pair, Source
from transformers_agci.errors import InputError

pytest.importorskip("datasets")
import small_sets
from small_sets import SMALL, as_folder, as_img2dataset_tars, as_table, content, good_pairs, jpeg, options, picture

built = small_sets.built  # fixture
source = small_sets.source  # fixture


def test_too_few_pairs_is_one_sentence(tmp_path: Path) -> None:
    made = as_folder(good_pairs(9), tmp_path / "source")
    with pytest.raises(InputError, match="at least 10 good pairs"):
        build(options(made, tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".*"))


def test_bad_pairs_are_dropped_named_and_counted(tmp_path: Path) -> None:
    pairs = good_pairs()
    first = Image.open(io.BytesIO(pairs[0][2]))
    bomb = io.BytesIO()
    Image.new("1", (8000, 7000)).save(bomb, "PNG")
    bad = [
        ("broken", "cut short", pairs[1][2][:-400]),
        ("text", "no image at all", b"hello"),
        ("tiny", "a tiny one", jpeg(picture(90, (300, 63)))),
        ("long", "a strip", jpeg(picture(91, (1000, 90)))),
        ("bomb", "56 million pixels in a few kilobytes", bomb.getvalue()),
        ("copy", "the first again, smaller", jpeg(first.resize((88, 66)), 60)),
        ("same", "Image  Number 1", jpeg(picture(92))),
        ("empty", "  ", jpeg(picture(93))),
    ]
    made = as_folder(pairs[:5] + bad + pairs[5:], tmp_path / "source")
    with (made / "metadata.csv").open("a") as file:
        file.write("nowhere.jpg,not there\n../outside.jpg,outside\n")
    summary = build(options(made, tmp_path / "out"))
    assert summary.items == 14
    assert summary.dropped == {
        "broken image": 4,
        "duplicate caption": 1,
        "duplicate image": 1,
        "extreme image": 2,
        "no caption": 1,
        "tiny image": 1,
    }
    dropped = [json.loads(line) for line in (tmp_path / "out" / "set.dropped.jsonl").open()]
    assert [drop["key"] for drop in dropped] == [key for key, _, _ in bad] + ["nowhere", "outside"]
    assert dropped[2]["detail"] == "its shorter side is 63 px, less than 64"


def test_perceptual_hash_knows_copies_and_tells_the_rest_apart() -> None:
    seen = Seen()
    for number in range(60):
        seen.add(str(number), str(number), fingerprint(picture(number, (270, 202))))
    for number in range(60):
        copy = Image.open(io.BytesIO(jpeg(picture(number, (270, 202)).resize((150, 112)), 50))).resize((270, 202))
        assert seen.has_image(fingerprint(copy)), number
        assert not seen.has_image(fingerprint(picture(number + 1000, (270, 202)))), number
    red, blue = (Image.new("RGB", (270, 270), "white") for _ in range(2))
    red.paste("red", (60, 60, 200, 200))
    blue.paste("blue", (60, 60, 200, 200))
    seen.add("red", "red", fingerprint(red))
    assert not seen.has_image(fingerprint(blue))


def test_awkward_names_and_captions(tmp_path: Path) -> None:
    pairs = [("a b/c", "007"), ("ü", "None"), ("x.y-z_1", 'NA, or "so"'), ("X.Y-Z_1", "true"), ("a" * 120, "1e5")]
    made = tmp_path / "source"
    (made / "a b").mkdir(parents=True)
    with (made / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for number, (key, caption) in enumerate(pairs):
            (made / f"{key}.png").parent.mkdir(exist_ok=True)
            picture(number).save(made / f"{key}.png")
            writer.writerow([f"{key}.png", caption])
    chosen = options(made, tmp_path / "out", kind="similarity")
    build(replace(chosen, source=Source(str(made), captions=str(made / "captions.csv"))))
    rows = read_probe_rows(tmp_path / "out" / "set.json")[::9]
    assert [row.caption for row in rows] == [caption for _, caption in pairs]
    assert [row.image for row in rows] == [
        "c_0.jpg",
        "000000001_0.jpg",
        "x.y-z_1_0.jpg",
        "X.Y-Z_1-3_0.jpg",
        "000000004_0.jpg",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing", "There is no source"),
        (lambda p: p, "No images with captions were found"),
        (lambda p: Path("nobody/such-a-set-of-ours"), "as a hub id it could not be opened"),
    ],
)
def test_a_source_that_is_none_is_one_sentence(
    make: Callable[..., Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "p").mkdir()
    with pytest.raises(InputError, match=message) as error:
        build(options(make(tmp_path / "p"), tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_hub_id_is_streamed_with_its_split_and_nothing_is_decoded(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = {}
    local = as_table(good_pairs(), tmp_path / "source")
    real = datasets.load_dataset

    def hub(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return real("parquet", data_files=str(local / "00000.parquet"), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    chosen = options(tmp_path, tmp_path / "out")
    build(replace(chosen, source=Source("somebody/pictures", split="validation")))
    assert asked == {"name": "somebody/pictures", "split": "validation", "streaming": True}
    assert content(tmp_path / "out") == content(built)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    made = as_folder(good_pairs(), tmp_path / "source")
    chosen = options(made, tmp_path / "out")
    with pytest.raises(InputError, match=r"no caption column: looked for title; it has file_name, caption"):
        build(replace(chosen, source=Source(str(made), caption_column="title")))


def test_a_tar_cut_short_keeps_what_was_read(built: Path, tmp_path: Path) -> None:
    made = as_img2dataset_tars(good_pairs(), tmp_path / "source")
    shard = made / "00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="broke after pair"):
        build(options(made, tmp_path / "out"))
    shard.write_bytes(whole)
    build(options(made, tmp_path / "out"))
    assert content(tmp_path / "out") == content(built)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file_name,caption\xff\n", r"metadata\.csv: the file is not UTF-8 text"),
        (b"file_name,caption\na.jpg,caf\xe9\n", r"broke after pair|not UTF-8|could not be opened"),
        (b"file_name,caption,caption\n", r"metadata\.csv: the column 'caption' occurs twice"),
        (b"", "could not be opened|has no image column|no good pair|broke"),
    ],
)
def test_bad_captions_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "metadata.csv").write_bytes(content)
    command = ["data", "build-probe", "--source", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--workers", "1"]) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed)
    assert printed.count("\n") == 1


def test_a_fifo_among_the_images_is_dropped_and_not_waited_for(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "fifo"))
    first = sorted(folder.glob("*.jpg"))[0]
    first.unlink()
    os.mkfifo(first)
    os.mkfifo(folder / "x.tar")
    made = build(options(folder, tmp_path))
    dropped = made.rows_file.with_name("set.dropped.jsonl").read_text()
    assert dropped.count("this is a FIFO, not a file") == 1


@pytest.mark.parametrize(
    "source_name", ["x" * 5000, "a/" * 2500, "\ud800", "a\0b"], ids=["long", "deep", "half", "NUL"]
)
def test_a_source_that_no_file_can_be_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source_name: str
) -> None:
    assert main(["data", "build-probe", "--source", source_name, "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "look",
    [
        ["--canvas", "99999999999999999999"],
        ["--canvas", "9000"],
        ["--gutter", "nan"],
        ["--box", "99999999999999999999"],
    ],
)
def test_a_canvas_of_no_bearable_size_is_one_sentence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], look: list[str]
) -> None:
    assert main(["data", "build-probe", "--source", str(source), "--output_dir", str(tmp_path / "out"), *look]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--items", "0"], "--items must be at least 1"),
        (["--quality", "101"], "--quality must be at most 95"),
        (["--background", "whitish"], "--background must be a colour"),
        (["--box", "281"], "do not fit on a canvas of 840 px"),
        (["--name", "a/b"], "--name must be a plain name"),
        (["--images", ".."], "--images must be a plain name"),
        (["--output_dir", "/dev/null/x"], "cannot be made"),
    ],
)
def test_bad_options_are_one_sentence(
    flags: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "build-probe", "--source", str(source), "--output_dir", str(tmp_path), *flags]
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_image_are_dropped_with_a_reason(data: bytes) -> None:
    found = screen(Pair(0, "a", "caption", data), Seen(), SMALL, "white")
    assert isinstance(found, Dropped) and found.reason == "broken image" and found.detail


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400))
def test_an_image_that_is_cut_off_is_dropped_and_a_whole_one_used(cut: int) -> None:
    whole = jpeg(picture(1))
    used = screen(Pair(0, "a", "caption", whole), Seen(), SMALL, "white")
    assert isinstance(used, Cell) and max(used.image.size) == SMALL.box
    found = screen(Pair(0, "a", "caption", whole[:-cut]), Seen(), SMALL, "white")
    assert isinstance(found, Dropped) and found.reason == "broken image"
