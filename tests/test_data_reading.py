"""The reader of rows and the opening of images: every format, every complaint."""

import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from transformers_agci import data
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.images import decode_image, open_image, resolve_below
from transformers_agci.data.rows import read_probe_rows, read_rows
from transformers_agci.errors import InputError


def rows():
    return [
        {"id": k, "image": f"a_{k}.jpg", "caption": "a dög", "position": name, "answer": "Yes", "extra": [k]}
        for k, name in enumerate(POSITIONS)
    ]


def write(path, kind):
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
def test_every_format_gives_the_same_rows(tmp_path: Path, name, kind) -> None:
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
def test_a_broken_file_is_one_sentence(tmp_path: Path, name, content, message) -> None:
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
def test_a_bad_field_is_named_with_its_line(tmp_path: Path, field, value, message) -> None:
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


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\\..\\x", "C:\\x", "C:x", "a\0b", "\\\\h\\x"]
)
def test_a_path_that_leaves_its_root_is_refused(tmp_path: Path, name) -> None:
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


def jpeg(size=(40, 30), mode="RGB"):
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
def test_a_bad_image_is_one_sentence(tmp_path: Path, content, message) -> None:
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
