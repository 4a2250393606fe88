"""Files made to break a command: no traceback, no hang, one sentence that names file, row or option."""

import copy
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS

EXAMPLES = 200  # per command; eleven commands
FILE = "{}"  # where the damaged file stands in a command

ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0.5,
    10**18,
    "",
    " ",
    "\ud800",
    "\x00",
    "../x",
    "/etc/passwd",
    "x" * 5000,
    "💥\u202e",
    [],
    ["human"],
    {},
    {"bytes": "x"},
    [[[]]],
    {"from": ["human"], "value": 3},
]
ODD_TEXTS = [
    b'{"id": ' + b"9" * 5000 + b"}",
    b"[" * 3000,
    b'{"a":' * 3000,
    b'{"id": NaN}',
    b'{"id": 1, "id": 2}',
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b"",
    b"\n\n",
    b"[]",
    b"null",
    b'"text"',
    b"[1, 2]",
    b'{"id": 1e999}',
    b"PAR1xxxxPAR1",
    b"\x1f\x8b\x08broken",
]

Rows = list[Any]


def write(content: Any, path: Path, lines: bool) -> None:
    rows = content if lines else [content]
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


@st.composite
def damages(draw: st.DrawFn) -> tuple[Any, ...]:
    """How a file is damaged: a value somewhere inside, bytes of it, all of it, or what kind of thing it is."""
    kind = draw(st.sampled_from(["value", "value", "value", "remove", "bytes", "cut", "insert", "text", "thing"]))
    place = draw(st.integers(0, 10**6))
    if kind == "value":
        return kind, place, draw(st.sampled_from(ODD_VALUES))
    if kind in ("remove", "cut"):
        return kind, place
    if kind in ("bytes", "insert"):
        return kind, place, draw(st.binary(min_size=1, max_size=4))
    return kind, draw(st.sampled_from(ODD_TEXTS if kind == "text" else ["fifo", "folder", "circle", "gone", "zero"]))


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything within a JSON value."""
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in keys for place in ((value, key), *places(inner))]


def damage(how: tuple[Any, ...], content: Any, path: Path, lines: bool) -> None:
    kind, *rest = how
    content = copy.deepcopy(content)
    there = places(content)
    if kind in ("value", "remove"):
        container, key = there[rest[0] % len(there)]
        if kind == "value":
            container[key] = rest[1]
        else:
            del container[key]
    write(content, path, lines)
    data = path.read_bytes()
    at = rest[0] % len(data) if isinstance(rest[0], int) else 0
    if kind == "bytes":
        path.write_bytes(data[:at] + rest[1] + data[at + len(rest[1]) :])
    elif kind == "insert":
        path.write_bytes(data[:at] + rest[1] + data[at:])
    elif kind == "cut":
        path.write_bytes(data[:at])
    elif kind == "text":
        path.write_bytes(rest[0])
    elif kind == "thing":
        path.unlink()
        make = {
            "fifo": os.mkfifo,
            "folder": Path.mkdir,
            "circle": lambda p: p.symlink_to(p.name),
            "gone": lambda p: None,
            "zero": lambda p: p.symlink_to("/dev/zero"),
        }
        make[rest[0]](path)


def probe_rows() -> Rows:
    return [
        {"id": k, "image": f"a_{k}.jpg", "caption": "c", "position": name, "answer": "Yes"}
        for k, name in enumerate(POSITIONS)
    ]


def images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(9):
        Image.new("RGB", (8, 8)).save(folder / f"a_{k}.jpg")
    return folder


def mix() -> Rows:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    return [{"id": str(k), "image": f"a_{k}.jpg", "conversations": turns} for k in range(3)]


def problems() -> dict[str, Any]:
    return {k: {"question": "?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None} for k in ("1", "2")}


def answered(rows: Rows, **fields: Any) -> Rows:
    return [{**row, **fields} for row in rows]


# name -> (what the damaged file holds, whether a row a line, the command with {} for the file, files beside it)
CASES: dict[str, tuple[Callable[[], Any], bool, Callable[[Path], list[Any]]]] = {
    "check": (probe_rows, True, lambda d: ["data", "check", FILE, "--img_path", images(d / "images")]),
    "check-images": (mix, True, lambda d: ["data", "check-images", FILE, "--image_root", images(d / "images")]),
    "sample-instruct": (
        mix,
        True,
        lambda d: [
            *("data", "sample-instruct", "--mix", FILE, "--image_root", images(d / "images")),
            *("--n", 2, "--output_dir", d / "out"),
        ],
    ),
    "build-scienceqa": (
        problems,
        False,
        lambda d: [
            *("data", "build-scienceqa", "--problems", FILE, "--output", d / "q.json"),
            *("--pid_splits", samples.write_json(d / "s.json", {"test": ["1", "2"]})),
        ],
    ),
    "score scienceqa": (
        lambda: answered(samples.scienceqa_questions(), text="A"),
        True,
        lambda d: ["score", "scienceqa", "--answers", FILE],
    ),
    "score pope": (
        samples.pope_questions,
        True,
        lambda d: [
            *("score", "pope", "--questions", FILE, "--annotations", samples.pope_label_files(d / "coco")),
            *("--answers", samples.write_rows(d / "a.jsonl", answered(samples.pope_questions(), prediction="No"))),
        ],
    ),
    "score textvqa": (
        samples.textvqa_annotations,
        False,
        lambda d: [
            *("score", "textvqa", "--annotations", FILE, "--answers"),
            samples.write_rows(d / "a.jsonl", answered(samples.textvqa_questions(), prediction="red")),
        ],
    ),
    "score crpe": (
        lambda: answered(samples.crpe_questions(), prediction="A"),
        True,
        lambda d: ["score", "crpe", "--answers", FILE],
    ),
    "score hallusionbench": (
        samples.hallusionbench_questions,
        True,
        lambda d: [
            *("score", "hallusionbench", "--questions", FILE, "--answers"),
            samples.write_rows(d / "a.jsonl", answered(samples.hallusionbench_questions(), prediction="Yes")),
        ],
    ),
    "score mmmu_pro": (lambda: samples.mmmu_rows(["A", "B"]), True, lambda d: ["score", "mmmu_pro", "--answers", FILE]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_used_or_named(
    case: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count_inputs: Callable[[int], None],
) -> None:
    made, lines, command = CASES[case]
    content = made()
    codes = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(damages())
    def try_it(how: tuple[Any, ...]) -> None:
        folder = tmp_path / str(len(codes))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = folder / "damaged.json"
        damage(how, content, file, lines)
        words = [str(file) if word == FILE else str(word) for word in command(folder)]
        codes.append(main([*words, "--resamples", "50"] if case.startswith("score") else words))
        printed = capsys.readouterr()
        assert codes[-1] in (0, 1, 2)
        if codes[-1] == 2:
            assert printed.err.startswith("agci: ") and printed.err.count("\n") == 1, printed.err
            assert any(name in printed.err for name in ("damaged.json", "a.jsonl", "s.json", "--", "coco")), printed.err

    try_it()
    count_inputs(len(codes))
    assert len(codes) >= EXAMPLES
    assert {0, 2} <= set(codes) or {1, 2} <= set(codes)


@pytest.mark.slow
def test_a_damaged_archive_is_unpacked_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count_inputs: Callable[[int], None]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("rows.json", "".join(json.dumps(row) + "\n" for row in probe_rows()))
        for file in images(tmp_path / "images").iterdir():
            packed.write(file, f"images/{file.name}")
    whole = buffer.getvalue()
    codes = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(whole) - 1), st.binary(max_size=3), st.booleans())
    def try_it(at: int, other: bytes, cut: bool) -> None:
        folder = tmp_path / str(len(codes))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "set.zip").write_bytes(whole[:at] + other + (b"" if cut else whole[at + len(other) :]))
        codes.append(main(["data", "fetch", "probe", "--local_copy", str(folder)]))
        error = capsys.readouterr().err
        assert codes[-1] in (0, 1, 2)
        assert codes[-1] != 2 or (error.startswith("agci: ") and error.count("\n") == 1), error

    try_it()
    count_inputs(len(codes))
    assert len(codes) >= EXAMPLES
