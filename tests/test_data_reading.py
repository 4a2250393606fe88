"""The reader of rows and the opening of images: every format, every complaint."""

import gzip
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformers_agci import data
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.images import (
    FIRST_FRAME,
    FROM_16_BITS,
    ON_WHITE,
    UPRIGHT,
    changes_of,
    decode_image,
    image_size,
    open_image,
    resolve_below,
    visible_image,
)
from transformers_agci.data.probe_rows import read_probe_rows
from transformers_agci.data.rows import read_rows
from transformers_agci.errors import InputError
from transformers_agci.storage.reading import read_json


def rows() -> list[dict[str, Any]]:
    return [
        {"id": k, "image": f"a_{k}.jpg", "caption": "a dög", "position": name, "answer": "Yes", "extra": [k]}
        for k, name in enumerate(POSITIONS)
    ]


def write(path: Path, kind: str) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    if kind == "array":
        path.write_text(json.dumps(rows(), indent=1), "utf-8")
    elif kind == "gz":
        path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), path)
    else:
        path.write_text({"bom": "\ufeff", "blank": "\n\n"}.get(kind, "") + lines, "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", "lines"),
        ("a.jsonl", "lines"),
        ("a.jsonl", "bom"),
        ("a.json", "blank"),
        ("a.json", "array"),
        ("a.json.gz", "gz"),
        ("a.jsonl.gz", "gz"),
        ("a.parquet", "parquet"),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / name, kind)
    assert [row for _, row in read_rows(path)] == rows()
    read = read_probe_rows(path)
    assert [row.cell for row in read] == list(range(9))
    assert read[4].fields == rows()[4]
    assert read[4].where.startswith(f"{name}:")


def test_where_counts_lines_as_an_editor_does(tmp_path: Path) -> None:
    assert [w for w, _ in read_rows(write(tmp_path / "a.json", "blank"))][:2] == ["a.json:3", "a.json:4"]
    text = tmp_path / "b.json"
    text.write_text('[\n {"id": 1},\n\n {"id": 2}, {"id": 3}\n]\n')
    assert [w for w, _ in read_rows(text)] == ["b.json:2", "b.json:4", "b.json:4"]


GOOD = '{"id": 1, "image": "a.jpg", "caption": "c", "position": "center", "answer": "Yes"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "holds no rows"),
        ("a.json", b" \n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.txt", b"x", "read from"),
        ("a.json", b'{"id": 1', r"a\.json:1: this line is not valid JSON"),
        ("a.json", GOOD.encode() + b"\n{oops}\n", r"a\.json:2: this line is not valid JSON"),
        ("a.json", b"[1]", "must be a JSON object"),
        ("a.json", b"3\n", "must be a JSON object"),
        ("a.json", b'[{"id": 1}', "cut off"),
        ("a.json", b'[{"id": 1} {"id": 2}]', "malformed or cut off"),
        ("a.json", b'[{"id": 1},]', "malformed or cut off"),
        ("a.json", b"\xff\xfe{}", "not UTF-8"),
        ("a.json", b"[" * 100_000, "malformed or cut off"),
        ("a.json.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], "broken or truncated"),
        ("a.json.gz", b"plain", "broken or truncated"),
        ("a.parquet", b"PAR1 no", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: there is no such file"):
        list(read_rows(tmp_path / "nothing.json"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", None, 'the field "id" is missing'),
        ("id", "7", '"id" must be a whole number'),
        ("id", True, '"id" must be a whole number'),
        ("image", None, 'the field "image" is missing; the row has: answer, caption, id, position'),
        ("image", 3, '"image" must be a text'),
        ("caption", "  ", '"caption" must be a text that is not empty'),
        ("position", "middle", "\"position\" is 'middle', but must be one of: top_left"),
        ("position", ["center"], '"position" is'),
        ("answer", "yes", "\"answer\" is 'yes', but must be one of: Yes, No"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path: Path, field: str, value: Any, message: str) -> None:
    row = json.loads(GOOD)
    row.pop(field)
    if value is not None:
        row[field] = value
    path = tmp_path / "a.json"
    path.write_text(f"{GOOD}\n{json.dumps(row)}\n{GOOD}\n")
    with pytest.raises(InputError, match=r"^a\.json:2: " + re.escape(message)):
        read_probe_rows(path)
    errors = []
    assert len(read_probe_rows(path, errors.append)) == 2
    assert len(errors) == 1


def test_bad_lines_can_be_collected_while_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"{{\n{GOOD}\n[]\n{GOOD}\n")
    errors = []
    assert [row.where for row in read_probe_rows(path, errors.append)] == ["a.json:2", "a.json:4"]
    assert len(errors) == 2


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_array_is_read_piece_by_piece_and_gives_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("transformers_agci.data.rows.CHUNK", chunk)
    odd = [{"text": 'a "quoted" ] } \\ dög \ud800', "number": -1.5e3, "n": 12345, "none": None, "list": [[1], {}]}, {}]
    path = tmp_path / "a.json"
    for indent in (None, 3):
        path.write_text(json.dumps(odd * 3, indent=indent), "utf-8")
        assert [row for _, row in read_rows(path)] == odd * 3
    begins = [n for n, line in enumerate(path.read_text("utf-8").split("\n"), 1) if line.startswith("   {")]
    assert [where for where, _ in read_rows(path)] == [f"a.json:{line}" for line in begins]


def test_the_rows_before_the_damage_of_an_array_come_first(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join(json.dumps({"id": k, "text": "x" * 999}) for k in range(500)) + ', {"id":')
    found = []
    with pytest.raises(InputError, match=r"^a\.json:500: the JSON array is malformed or cut off here"):
        found.extend(row["id"] for _, row in read_rows(path))  # extend keeps what came before the error
    assert found == list(range(500))


HOSTILE = {
    "a number of 5000 digits": ('{"id": ' + "7" * 5000 + "}", "has more than 64 bits"),
    "a number of 400 digits": ('{"id": ' + "7" * 400 + "}", "has more than 64 bits"),
    "an endless number": ('{"id": 1e999}', "the number '1e999' is too large"),
    "NaN": ('{"id": NaN}', "NaN is not a JSON value; write null"),
    "deep lists": ('{"id": ' + "[" * 200 + "]" * 200 + "}", "nested deeper than 100"),
    "very deep lists": ('{"id": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested deeper than 100"),
    "deep objects": ('{"id": ' * 200 + "1" + "}" * 200, "nested deeper than 100"),
    "a key twice": ('{"id": 1, "answer": "Yes", "answer": "No"}', "the key 'answer' occurs twice in one object"),
    "control characters": ('{"id": "a\nb"}', "not valid JSON|malformed"),
}


@pytest.mark.parametrize("form", ["{}", "[{}]"], ids=["line", "array"])
@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_one_sentence(tmp_path: Path, text: str, message: str, form: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(form.replace("{}", text))
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(path))
    assert str(error.value).startswith("a.json:1: ")
    assert len(str(error.value)) < 300
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_numbers_of_64_bits_and_nan_pass_where_they_may(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"id": 18446744073709551615, "margin": NaN, "exact": 0.12345678901234567890123}')
    ((_, row),) = read_rows(path, nan=True)
    assert row["id"] == 2**64 - 1
    assert row["exact"] == 0.12345678901234568
    assert math.isnan(row["margin"])


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_circle(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_fifo, "this is a FIFO, not a file"),
        (lambda path: path.mkdir(), "this is a folder, not a file"),
        (make_circle, r"cannot be read \(Too many levels of symbolic links\)"),
        (lambda path: path.symlink_to("/dev/zero"), "this is a device or socket, not a file"),
        (lambda path: path.symlink_to("nowhere"), "there is no such file"),
    ],
    ids=["FIFO", "folder", "circle", "device", "dangling link"],
)
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path, make: Callable[..., Any], message: str) -> None:
    path = tmp_path / "a.json"
    make(path)
    for read in (lambda: list(read_rows(path)), lambda: read_json(path)):
        with pytest.raises(InputError, match=message):
            read()


@pytest.mark.parametrize("name", ["x" * 5000 + ".json", "\ud800.json", "a\0b.json"], ids=["long", "surrogate", "NUL"])
def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        list(read_rows(tmp_path / name))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700


def test_a_gzip_line_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_agci.data.rows.MAX_ROW", 1 << 20)
    for begin in (b'{"id": "', b'[{"id": "'):
        (tmp_path / "a.json.gz").write_bytes(gzip.compress(begin + b"x" * (5 << 20) + b'"}'))
        with pytest.raises(InputError, match=r"a\.json:1: the (line|row) is longer than 1 MiB|a\.json\.gz:1: the"):
            list(read_rows(tmp_path / "a.json.gz"))


def test_odd_parquet_values_become_json_or_are_named(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "when": pa.array([datetime.datetime(2020, 1, 2, 3), None]),
        "day": pa.array([datetime.date(2020, 1, 2), None]),
        "price": pa.array([decimal.Decimal("1.5"), None]),
        "score": pa.array([float("nan"), 0.5]),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "image": pa.array([{"bytes": b"\x00", "path": None}, None]),
        "name": pa.array(["a", "b"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (_, first), (where, second) = read_rows(tmp_path / "a.parquet")
    assert first == {
        "when": "2020-01-02T03:00:00",
        "day": "2020-01-02",
        "price": 1.5,
        "score": None,
        "map": [["a", 1]],
        "image": {"bytes": b"\x00", "path": None},
        "name": "a",
    }
    assert (where, second["score"], second["name"]) == ("a.parquet:row 2", 0.5, "b")
    far = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"when": far}), tmp_path / "far.parquet")
    with pytest.raises(InputError, match=r"far\.parquet: the parquet file cannot be read after row 0"):
        list(read_rows(tmp_path / "far.parquet"))


def test_a_file_of_any_name_is_known_by_its_content(tmp_path: Path) -> None:
    for kind in ("lines", "array", "gz", "parquet"):
        path = write(tmp_path / f"answers of {kind}", kind)
        assert [row for _, row in read_rows(path, any_name=True)] == rows()
        with pytest.raises(InputError, match="rows are read from"):
            list(read_rows(path))


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\\..\\x", "C:\\x", "C:x", "a\0b", "\\\\h\\x"]
)
def test_a_path_that_leaves_its_root_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^rows\.json:3: .*relative and without"):
        resolve_below(tmp_path, name, "rows.json:3")


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "file.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "inside").symlink_to(root / "sub")
    for name in ("file.jpg", "folder/secret.jpg"):
        with pytest.raises(InputError, match="a link that leads out"):
            resolve_below(root, name, "r:1")
    assert resolve_below(root, "inside/a.jpg", "r:1") == root.resolve() / "sub" / "a.jpg"
    assert resolve_below(root, "a..b.jpg", "r:1").name == "a..b.jpg"


def jpeg(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def test_an_image_is_opened_as_rgb(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "CMYK"):
        (tmp_path / "a.jpg").write_bytes(jpeg(mode=mode))
        image = open_image(tmp_path / "a.jpg", "r:1")
        assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image"),
        (jpeg()[:-200], "is broken or truncated"),
        (jpeg((200, 100)), "has 200x100 pixels, more than the 10000"),
    ],
)
def test_a_bad_image_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^r\.json:5: the image .*a\.jpg {message}"):
        open_image(path, "r.json:5", max_pixels=10_000)


def test_a_truncated_image_never_passes_silently() -> None:
    whole = jpeg()
    for length in range(len(whole) - 2):
        with pytest.raises(InputError):
            decode_image(whole[:length], "it")


def test_a_folder_is_not_a_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_image(tmp_path, "r:1")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey16(values: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=np.uint16))


def half_transparent(mode: Any) -> Image.Image:
    """Red, of which the right half is transparent."""
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    return image.convert(mode)


RED_ON_WHITE = [(200, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("data", "pixels", "changes"),
    [
        (saved(grey16([0, 32768, 65535]), "PNG"), [(0,) * 3, (128,) * 3, (255,) * 3], (FROM_16_BITS,)),
        (saved(grey16([0, 257, 65535]), "TIFF"), [(0,) * 3, (1,) * 3, (255,) * 3], (FROM_16_BITS,)),
        (
            saved(grey16([0, 7, 65535]), "PNG", transparency=7),
            [(0,) * 3, (255,) * 3, (255,) * 3],
            (FROM_16_BITS, ON_WHITE),
        ),
        (saved(half_transparent("RGBA"), "PNG"), RED_ON_WHITE, (ON_WHITE,)),
        (saved(half_transparent("RGBA"), "WEBP", lossless=True), RED_ON_WHITE, (ON_WHITE,)),
        (saved(half_transparent("RGBA"), "TIFF"), RED_ON_WHITE, (ON_WHITE,)),
        (saved(half_transparent("RGBA"), "GIF"), RED_ON_WHITE, (ON_WHITE,)),
        (saved(Image.new("RGBA", (2, 1), (200, 0, 0, 255)), "PNG"), [(200, 0, 0)] * 2, ()),
        (saved(Image.new("LA", (1, 1), (7, 0)), "PNG"), [(255,) * 3], (ON_WHITE,)),
        (saved(Image.new("RGB", (1, 1), (1, 2, 3)).quantize(), "PNG"), [(1, 2, 3)], ()),
        (saved(Image.new("1", (1, 1), 1), "PNG"), [(255,) * 3], ()),
        (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [(255, 0, 0)], ()),
    ],
)
def test_a_model_sees_what_a_viewer_shows(
    data: bytes, pixels: list[tuple[int, int, int]], changes: tuple[Any, ...]
) -> None:
    image = visible_image(data, "it")
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(image.width)] == pixels
    assert changes_of(image) == changes
    assert changes_of(pickle.loads(pickle.dumps(image))) == changes  # as a worker sends it


def test_an_image_stands_upright_and_only_its_first_frame_counts() -> None:
    lying = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = visible_image(saved(lying, "JPEG", exif=exif), "it")
    assert (image.size, changes_of(image)) == ((10, 20), (UPRIGHT,))
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        animated = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        image = visible_image(animated, "it")
        assert (image.getpixel((0, 0)), changes_of(image)) == ((255, 0, 0), (FIRST_FRAME,)), kind


@pytest.mark.parametrize(("mode", "message"), [("F", "has floating-point numbers"), ("I", "has 32-bit numbers")])
def test_pixels_of_unknown_range_are_refused(mode: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^it {message} for pixels"):
        visible_image(saved(Image.new(mode, (2, 2), 1), "TIFF"), "it")


def test_a_text_in_a_file_cannot_pose_as_a_change() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("changes", "x")
    assert changes_of(visible_image(saved(Image.new("RGB", (1, 1)), "PNG", pnginfo=info), "it")) == ()


@pytest.mark.parametrize("size", [(1, 1), (100_000, 1), (1, 100_000)])
def test_thin_images_are_read(size: tuple[int, int]) -> None:
    assert visible_image(saved(Image.new("RGB", size), "PNG"), "it").size == size


@pytest.mark.parametrize("make", [make_fifo, make_circle, lambda path: path.symlink_to("/dev/zero")])
def test_an_image_that_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[..., Any]) -> None:
    make(tmp_path / "x.jpg")
    for read in (open_image, image_size):
        with pytest.raises(InputError, match=r"^r:1: the image .*x\.jpg cannot be read"):
            read(tmp_path / "x.jpg", "r:1")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 2500 + "x", "\ud800.jpg", "circle", "circle/x.jpg"])
def test_a_name_that_leads_nowhere_is_one_sentence(tmp_path: Path, name: str) -> None:
    make_circle(tmp_path / "circle")
    with pytest.raises(InputError, match=r"^r:1: ") as error:
        open_image(resolve_below(tmp_path, name, "r:1"), "r:1")
    assert str(error.value).isprintable()


def test_draft_halves_a_large_jpeg_and_leaves_a_small_one() -> None:
    assert min(decode_image(jpeg((1200, 900)), "it", draft=270).size) >= 270
    assert decode_image(jpeg((512, 384)), "it", draft=270).size == (512, 384)


def test_the_whole_package_of_data_loads_neither_torch_nor_datasets() -> None:
    modules = sorted(path.stem for path in Path(data.__file__).parent.glob("*.py"))
    program = "import sys, importlib\n" + "".join(
        f"importlib.import_module('transformers_agci.data.{name}')\n" for name in modules if name != "__init__"
    )
    program += "sys.exit(', '.join({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
