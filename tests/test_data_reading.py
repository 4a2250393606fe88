"""The reader of rows: every format, every complaint, paths that leave their root."""

import gzip
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transformers_agci import data
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.images import (
    resolve_below,
)
from transformers_agci.data.probe_rows import read_probe_rows
from transformers_agci.data.rows import read_rows
from transformers_agci.errors import InputError
from transformers_agci.storage.reading import read_json


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_circle(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


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


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a folder: name a file in it; rows are read"):
        list(read_rows(tmp_path))


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


def test_the_whole_package_of_data_loads_neither_torch_nor_datasets() -> None:
    modules = sorted(path.stem for path in Path(data.__file__).parent.glob("*.py"))
    program = "import sys, importlib\n" + "".join(
        f"importlib.import_module('transformers_agci.data.{name}')\n" for name in modules if name != "__init__"
    )
    program += "sys.exit(', '.join({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
