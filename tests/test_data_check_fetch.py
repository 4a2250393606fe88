"""agci data check and agci data fetch, the latter on local copies in its three shapes."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import pytest
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.check import check
from transformers_agci.data.fetch import HUB_SETS, arrange, download, unpack
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError, counted

NAME = "laion_bias_test_easy_10k_840_840.json"


def jpeg(colour: str | tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def rows(items: int = 2) -> list[dict[str, Any]]:
    return [
        {"id": item * 9 + k, "image": f"{item:09d}_{k}.jpg", "caption": f"c {item}", "position": name, "answer": "Yes"}
        for item in range(items)
        for k, name in enumerate(POSITIONS)
    ]


def write_rows(path: Path, written: list[dict[str, Any]] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows() if written is None else written)))
    return path


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A downloaded set as loose files: the rows, and the images in a folder of their own."""
    folder = tmp_path / "loose"
    write_rows(folder / NAME)
    (folder / "pictures").mkdir()
    for row in rows():
        (folder / "pictures" / row["image"]).write_bytes(jpeg((row["id"] * 9, 0, 0)))
    (folder / "README.md").write_text("a card")
    return folder


def test_one_is_counted_as_one(tmp_path: Path) -> None:
    twice = [row | {"caption": "c"} for row in rows()]
    assert check(write_rows(tmp_path / "twice.json", twice)).notes[0] == "1 caption is asked for in more than one item."
    odd = [*rows(), {**rows()[0], "image": "o.jpg", "grid": "1x2", "row": 0, "col": 1, "id": 99}]
    assert "one set needs one grid, but has 1 row of 1x2, 18 rows of 3x3." in "".join(
        check(write_rows(tmp_path / "odd.json", odd)).errors
    )


def test_a_sound_set_has_no_errors(loose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(loose / NAME, loose / "pictures")
    assert (report.rows, report.items, report.errors) == (18, 2, [])
    assert report.answers == {"Yes": 18}
    assert set(report.positions.values()) == {2}
    assert report.sizes == {(40, 40): 18}
    assert main(["data", "check", str(loose / NAME), "--img_path", str(loose / "pictures")]) == 0
    assert "images: 18 of 40x40" in capsys.readouterr().out


def change(index: Any, **fields: Any) -> Any:
    def apply(written: list[dict[str, Any]], pictures: Path) -> None:
        written[index].update(fields)

    return apply


def swap(written: list[dict[str, Any]], pictures: Path) -> None:
    written[3], written[12] = written[12], written[3]


@pytest.mark.parametrize(
    ("harm", "errors"),
    [
        (change(3, position="center"), ["the item 000000000.jpg must have each of the nine positions once"]),
        (change(3, position="middle"), [":4: \"position\" is 'middle'", "must have each of the nine"]),
        (change(3, id=2), [":4: the id 2 stands in"]),
        (change(3, image="000000000_2.jpg"), [":4: the question 000000000_2.jpg stands in"]),
        (change(3, image="../x_2.jpg"), ["must be relative and without", "must have each", "has been"]),
        (lambda w, p: w.pop(5), ["must have each of the nine positions once"]),
        (swap, ["must stand together"]),
        (lambda w, p: (p / w[4]["image"]).unlink(), [":5: the image", "does not exist"]),
        (lambda w, p: (p / w[4]["image"]).write_bytes(jpeg("red")[:-60]), ["is broken or truncated"]),
        (lambda w, p: (p / w[4]["image"]).write_bytes(b"x"), ["is not an image"]),
    ],
)
def test_every_harm_is_an_error_with_its_line(
    harm: Callable[..., Any], errors: list[str], loose: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = rows()
    harm(written, loose / "pictures")
    write_rows(loose / NAME, written)
    report = check(loose / NAME, loose / "pictures")
    for error in errors:
        assert any(error in found for found in report.errors), report.errors
    assert main(["data", "check", str(loose / NAME), "--img_path", str(loose / "pictures")]) == 1
    assert counted(len(report.errors), "error") in capsys.readouterr().out


def test_a_malformed_line_is_counted_and_the_rest_is_checked(loose: Path) -> None:
    with (loose / NAME).open("a") as file:
        file.write("{oops\n")
    report = check(loose / NAME)
    assert report.rows == 18
    assert report.errors == [error for error in report.errors if f"{NAME}:19: this line is not valid JSON" in error]
    assert any("not checked" in note for note in report.notes)


def test_many_errors_are_counted_and_not_all_printed(loose: Path) -> None:
    shutil.rmtree(loose / "pictures")
    with pytest.raises(InputError, match="There is no image folder"):
        check(loose / NAME, loose / "pictures")
    (loose / "pictures").mkdir()
    lines = list(check(loose / NAME, loose / "pictures").lines(errors_shown=5))
    assert lines[-2:] == ["error: and 13 more", "18 errors"]


def as_zip(loose: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(loose / NAME, folder)
    with zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for path in (loose / "pictures").iterdir():
            packed.write(path, f"imgs/{path.name}")
    return folder


def as_tar(loose: Path, folder: Path) -> Path:
    """Rows and images in one compressed tar."""
    folder.mkdir()
    with tarfile.open(folder / "all.tar.gz", "w:gz") as packed:
        packed.add(loose / NAME, f"set/{NAME}")
        packed.add(loose / "pictures", "set/pictures")
    return folder


def as_parquet(loose: Path, folder: Path, with_path: bool = True) -> Path:
    import pyarrow
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True)
    table = []
    for row in rows():
        data = (loose / "pictures" / row["image"]).read_bytes()
        table.append({**row, "image": {"bytes": data, "path": row["image"] if with_path else None}})
    for shard, part in enumerate((table[:7], table[7:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / "data" / f"{shard}.parquet")
    return folder


@pytest.mark.parametrize(
    "shape",
    [
        shutil.copytree,
        as_zip,
        as_tar,
        as_parquet,
        lambda loose, folder: as_parquet(loose, folder, with_path=False),
    ],
    ids=["loose", "zip", "tar", "parquet", "parquet_without_names"],
)
def test_a_local_copy_in_every_shape_is_arranged_and_checked(
    shape: Callable[..., Any], loose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shape(loose, tmp_path / "copy")
    for _ in range(2):  # the second time all of it stands already
        assert main(["data", "fetch", "probe", "--local_copy", str(copy)]) == 0
        printed = capsys.readouterr().out
        assert "18 rows, 2 items" in printed
        assert "images: 18 of 40x40" in printed
    (found,) = arrange(copy)
    for row in rows():
        assert (found.images / row["image"]).read_bytes() == jpeg((row["id"] * 9, 0, 0))


def test_what_is_found_is_said(loose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "fetch", "similarity", "--local_copy", str(loose)])
    assert "holds 18 .jpg, 1 .json, 1 .md" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../outside.jpg", "/tmp/outside.jpg", "a/../../outside.jpg", "..\\outside.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_unpacked_out_of_the_folder(kind: str, name: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    archive = target / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(name, b"x")
    else:
        with tarfile.open(archive, "w") as packed:
            packed.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with pytest.raises(InputError, match="has to stay below"):
        unpack(archive, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", archive.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, "zip"])
def test_links_and_devices_are_not_unpacked(kind: bytes | str, tmp_path: Path) -> None:
    if kind == "zip":
        entry = zipfile.ZipInfo("link.jpg")
        entry.external_attr = 0o120777 << 16
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as packed:
            packed.writestr(entry, "/etc/passwd")
    else:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "evil.tar", "w") as packed:
            packed.addfile(info)
    with pytest.raises(InputError, match="link or a device"):
        unpack(next(tmp_path.iterdir()), tmp_path)


def test_nothing_is_written_through_links_of_the_copy(loose: Path, tmp_path: Path) -> None:
    """Links where earlier versions kept unfinished files, and a folder of images that lies elsewhere."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    packed = as_zip(loose, tmp_path / "packed")
    (packed / "imgs").mkdir()
    for row in rows():
        (packed / "imgs" / f"{row['image']}.part").symlink_to(precious)
    arrange(packed)
    table = as_parquet(loose, tmp_path / "table")
    for name in ("table.jsonl", "table.jsonl.part"):
        (table / name).symlink_to(precious)
    arrange(table)
    assert not (table / "table.jsonl").is_symlink()
    linked = as_parquet(loose, tmp_path / "linked")
    (linked / "images").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"0\.parquet:row 1: .* is a link that leads out of"):
        arrange(linked)
    assert precious.read_text() == "mine"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_made_to_fill_the_disk_is_refused_unless_allowed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = b"\0" * 40_000_000
    archive = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in ("a.jpg", "b.jpg"):
                packed.writestr(name, big)
    else:
        with tarfile.open(archive, "w:gz") as packed:
            for name in ("a.jpg", "b.jpg"):
                info = tarfile.TarInfo(name)
                info.size = len(big)
                packed.addfile(info, io.BytesIO(big))
    assert main(["data", "fetch", "probe", "--local_copy", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "unpacks to more than 100 times its size" in message
    assert "raise --max_unpack_ratio." in message
    assert not (tmp_path / "b.jpg").exists()
    assert unpack(archive, tmp_path, max_ratio=2000) == 2


@pytest.mark.parametrize("shape", [as_zip, as_tar])
def test_a_broken_archive_is_one_sentence_and_a_whole_one_goes_on(
    shape: Callable[..., Any], loose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shape(loose, tmp_path / "copy")
    (archive,) = (path for path in copy.iterdir() if path.suffix in (".zip", ".gz"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert main(["data", "fetch", "probe", "--local_copy", str(copy)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    archive.write_bytes(whole)
    assert main(["data", "fetch", "probe", "--local_copy", str(copy)]) == 0


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "`local_copy`: there is no folder"),
        (lambda folder: (folder / NAME).unlink(), "holds no rows"),
        (lambda folder: shutil.rmtree(folder / "pictures"), "is nowhere below"),
    ],
)
def test_a_copy_that_is_none_is_one_sentence(harm: Callable[..., Any], message: str, loose: Path) -> None:
    harm(loose)
    with pytest.raises(InputError, match=message):
        arrange(loose)


def test_offline_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> Never:
        raise huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode.\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert main(["data", "fetch", "probe", "--output_dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "AAAndyZ/AGCI_Probe_Dataset" in printed
    assert "(the hub is out of reach)" in printed
    assert "--local_copy" in printed


@pytest.mark.parametrize("there", [0, 1, 2])
def test_the_older_name_is_the_fallback(there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    response = SimpleNamespace(headers={}, request=None)

    def answer(name: str, repo_type: str, local_dir: Path) -> None:
        asked.append(name)
        if len(asked) <= there:
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    if there == 2:
        with pytest.raises(InputError, match="The hub has none of AAAndyZ/AGCI_Probe_Dataset, AAAndyZ/BaPA_Probe"):
            download("probe", tmp_path)
    else:
        assert download("probe", tmp_path).name == HUB_SETS["probe"][there].split("/")[1]
    assert asked == list(HUB_SETS["probe"][: there + 1])
