"""Building sets: three kinds of source give one set; workers, interruptions and truncation change no byte."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.build import build
from transformers_agci.data.built_set import BuildOptions
from transformers_agci.data.composites import alone, compose, encode_jpeg, with_target
from transformers_agci.data.draws import draw
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.data.painting import in_order
from transformers_agci.data.probe_rows import read_probe_rows
from transformers_agci.data.screening import Cell, Dropped, Seen, fingerprint, screen
from transformers_agci.data.sources import Pair, Source
from transformers_agci.errors import InputError

pytest.importorskip("datasets")
SMALL = Grid(canvas=30, box=8, margin=2, gutter=1)


def picture(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A coarse random pattern: unlike every other number's."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def good_pairs(count: int = 14) -> list[tuple[str, str, bytes]]:
    shapes = [(96, 72), (72, 96), (120, 120), (300, 70)]
    return [(f"{n:09d}", f"image number {n}", jpeg(picture(n, shapes[n % 4]))) for n in range(count)]


def as_folder(pairs: list[tuple[str, str, bytes]], folder: Path, captions: str = "metadata.csv") -> Path:
    folder.mkdir(parents=True)
    for key, _, data in pairs:
        (folder / f"{key}.jpg").write_bytes(data)
    rows = [{"file_name": f"{key}.jpg", "caption": caption} for key, caption, _ in pairs]
    with (folder / captions).open("w", newline="", encoding="utf-8") as file:
        if captions.endswith(".csv"):
            writer = csv.DictWriter(file, ["file_name", "caption"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def as_img2dataset_tars(pairs: list[tuple[str, str, bytes]], folder: Path) -> Path:
    """Two shards as img2dataset writes them: key.jpg, key.txt, key.json."""
    folder.mkdir(parents=True)
    for shard, part in enumerate((pairs[:8], pairs[8:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for key, caption, data in part:
                meta = json.dumps({"caption": caption, "key": key, "status": "success"}).encode()
                for suffix, content in (("jpg", data), ("json", meta), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def as_table(pairs: list[tuple[str, str, bytes]], folder: Path, kind: str = "parquet") -> Path:
    import datasets

    folder.mkdir(parents=True)
    table = datasets.Dataset.from_dict(
        {
            "key": [key for key, _, _ in pairs],
            "image": [{"bytes": data, "path": f"{key}.jpg"} for key, _, data in pairs],
            "caption": [caption for _, caption, _ in pairs],
        },
        features=datasets.Features(
            {"key": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
        ),
    )
    if kind == "parquet":
        table.to_parquet(folder / "00000.parquet")
    else:
        table.save_to_disk(folder)
    return folder


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


def options(source: Path, folder: Path, **changes: Any) -> BuildOptions:
    return replace(BuildOptions("probe", Source(str(source)), folder, "set", grid=SMALL), **changes)


def content(folder: Path, without: tuple[str] = ("manifest",)) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if not any(w in p.name for w in without)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_folder(good_pairs(), tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(options(source, folder))
    return folder


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


class Stop(Exception):
    pass


def interrupt(chosen: BuildOptions, after: int) -> Path:
    """Build until `after` items are painted; returns the scratch folder."""

    def stop(done: int, items: int) -> None:
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        build(chosen, progress=stop)
    return chosen.folder / ".set.building"


@pytest.mark.parametrize("after", [1, 5, 14])
def test_an_interrupted_build_goes_on(after: int, source: Path, built: Path, tmp_path: Path) -> None:
    interrupt(options(source, tmp_path), after)
    assert not (tmp_path / "set.json").exists()
    summary = build(options(source, tmp_path))
    assert summary.painted == 14 - after
    assert content(tmp_path) == content(built)
    assert build(options(source, tmp_path)).painted == 0


ODD_RECORDS: list[tuple[str, str]] = [
    ("pool.jsonl", "[]"),
    ("pool.jsonl", "7"),
    ("pool.jsonl", "{}"),
    ("pool.jsonl", '{"end": null}'),
    ("pool.jsonl", '{"drop": [1, 2]}'),
    ("pool.jsonl", '{"pair": ["../a", "a dog", 0, [9, 9]], "fingerprint": "00"}'),
    ("pool.jsonl", '{"pair": ["a", "a dog", 0, [1e9, 9]], "fingerprint": "00"}'),
    ("pool.jsonl", '{"pair": null}'),
    ("settings.json", "[]"),
    ("settings.json", "\xff"),
]


@pytest.mark.parametrize(("name", "record"), ODD_RECORDS)
def test_a_record_that_no_build_writes_is_named(name: str, record: str, source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, kind="similarity", items=2)
    file = interrupt(chosen, 1) / name
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([record.encode("latin-1") + b"\n", *lines[1:]]))
    with pytest.raises(InputError, match=rf"{name}.*give `overwrite` to start over\.$"):
        build(chosen)


def test_a_journal_of_items_that_holds_something_else_is_cut_off(source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, kind="similarity", items=2)
    (interrupt(chosen, 2) / "items.jsonl").write_text("7\n[]\n")
    assert build(chosen).painted == 2


ODD_MANIFESTS: list[tuple[str, Any]] = [
    ("settings", {"images": 3}),
    ("settings", None),
    ("sha256", None),
    ("items", "2"),
    ("dropped", ["a"]),
    ("dropped", {"a": None}),
    ("rows_files", "set.json"),
    ("rows_files", [None]),
]


@pytest.mark.parametrize(("field", "value"), ODD_MANIFESTS)
def test_a_manifest_that_no_build_writes_is_named(field: str, value: Any, source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, kind="similarity", items=2)
    build(chosen)
    file = tmp_path / "set.manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(InputError, match=rf"set\.manifest\.json.*{field}.*is not the manifest of a built set"):
        build(chosen)


def cut_everywhere(source: Path, tmp_path: Path, step: int) -> int:
    """Cut each file of the last item, and each journal, at every `step`-th byte; resume; compare all bytes.

    Returns how many cuts of a file were tried. A similarity set of two items, because each cut verifies the whole set.
    The nine images are cut at the same byte together: one that was not painted again would differ from its whole.
    """
    chosen = options(source, tmp_path / "out", kind="similarity", items=2)
    build(replace(chosen, folder=tmp_path / "whole"))
    expected = content(tmp_path / "whole")
    scratch = interrupt(chosen, 2)
    shutil.copytree(scratch, tmp_path / "pristine")
    images = [chosen.folder / "set_images" / f"000000001_{k}.jpg" for k in range(9)]
    groups = [images, *([scratch / name] for name in ("items.jsonl", "pool.jsonl", "cells.bin"))]
    whole_files = [{path: path.read_bytes() for path in group} for group in groups]
    cuts = 0
    for contents in whole_files:
        for length in range(0, max(map(len, contents.values())), step):
            for written in chosen.folder.glob("set*.json*"):
                written.unlink()
            shutil.copytree(tmp_path / "pristine", scratch, dirs_exist_ok=True)
            cut = {path: whole for path, whole in contents.items() if length < len(whole)}
            for path, whole in cut.items():
                path.write_bytes(whole[:length])
            build(chosen)
            assert content(chosen.folder) == expected, ([path.name for path in cut], length)
            cuts += len(cut)
    return cuts


def test_truncation_of_the_last_item_is_survived(source: Path, tmp_path: Path) -> None:
    assert cut_everywhere(source, tmp_path, step=397) >= 20


@pytest.mark.slow
def test_truncation_at_every_byte_of_the_last_items_files_is_survived(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no power fails here, and each of 3,000 builds syncs six times
    assert cut_everywhere(source, tmp_path, step=1) > 6000


def test_truncation_of_a_finished_set_is_repaired(source: Path, built: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path))
    for name in ("set.json", "set_negatives.json", "set_images/000000013_8.jpg"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1])
        assert build(options(source, tmp_path)).painted == 14
        assert content(tmp_path) == content(built)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(workers: int, source: Path, built: Path, tmp_path: Path) -> None:
    assert build(options(source, tmp_path), workers=workers).painted == 14
    assert content(tmp_path, without=()) == content(built, without=())


@pytest.mark.slow
def test_a_sigkill_is_survived(tmp_path: Path) -> None:
    """A real build in a process of its own, killed in the middle, its workers with it; then the same command again."""
    made = as_folder(good_pairs(60), tmp_path / "source")
    command = [
        sys.executable,
        "-m",
        "transformers_agci.cli",
        "data",
        "build-probe",
        "--source",
        str(made),
        "--name",
        "set",
        "--workers",
        "2",
        "--output_dir",
    ]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = killed / ".set.building" / "items.jsonl"
    while not (journal.exists() and journal.stat().st_size > 3 * 600):
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "set.json").exists()
    subprocess.run([*command, str(killed)], check=True)
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    assert content(killed, without=()) == content(tmp_path / "whole", without=())


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


def test_other_settings_are_refused_and_overwrite_is_explicit(source: Path, built: Path, tmp_path: Path) -> None:
    interrupt(options(source, tmp_path), 2)
    with pytest.raises(InputError, match=r"begun with other settings \(seed was 0, now 1\)"):
        build(options(source, tmp_path, seed=1))
    build(options(source, tmp_path))
    with pytest.raises(InputError, match=r"quality was 75, now 80.*`overwrite`"):
        build(options(source, tmp_path, quality=80))
    assert content(tmp_path) == content(built)
    build(options(source, tmp_path, seed=1), overwrite=True)
    assert content(tmp_path) != content(built)


def test_an_interrupted_overwrite_goes_on_without_the_word(source: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path))

    def stop(done: int, items: int) -> Never:
        raise Stop

    with pytest.raises(Stop):
        build(options(source, tmp_path, seed=1), overwrite=True, progress=stop)
    assert build(options(source, tmp_path, seed=1)).painted == 13


def test_two_sets_never_share_an_image_folder(source: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path, images="images"))
    with pytest.raises(InputError, match="holds the images of"):
        build(options(source, tmp_path, name="other", images="images"))


def test_a_second_process_on_the_same_set_is_refused(source: Path, tmp_path: Path) -> None:
    def again(done: int, items: int) -> None:
        build(options(source, tmp_path))

    with pytest.raises(InputError, match="Another program is building"):
        build(options(source, tmp_path), progress=again)


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(InputError, match="worker process was killed"):
        list(in_order(os._exit, [9] * 3, workers=2))  # os._exit(9) is what a kill looks like from outside


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    source: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.data import painting

    real, calls = painting.open_atomic, Counter()

    def full(*args: Any, **options: Any) -> Any:
        calls["write"] += 1
        if calls["write"] > 30:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(painting, "open_atomic", full)
    with pytest.raises(InputError, match=r"No space left on device.*what was finished is kept"):
        build(options(source, tmp_path))
    monkeypatch.undo()
    assert build(options(source, tmp_path)).painted == 11
    assert content(tmp_path) == content(built)


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
