"""Files and options of every command, damaged at random: one sentence that names the culprit, no traceback, no hang.

Each case (hostile_cases.py) is a command that works, or would, had it a model, with files of its own. An example
damages one file, its bytes or a value in its JSON, and runs the command in this process; then every option that takes
a value is given odd ones. Nothing loads a model: where one is needed, its folder is what is damaged, or is missing so
that all else is read before.
"""

import contextlib
import io
import json
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import CASES, Case
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from transformers_agci.cli import COMMANDS, Command, command_parser, main
from transformers_agci.errors import InputError

pytestmark = pytest.mark.slow

LONGEST = 3000  # characters of a sentence: one lists the supported families
HANG = 60  # seconds after which an input counts as one that hangs; a damaged file of a few kB takes milliseconds
# Values that a JSON field may have where it should not.
ODD_JSON: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    " ",
    "\x00",
    "\ud800",
    "\x1b[31m",
    "../x.jpg",
    "/etc/passwd",
    "a" * 5000,
    [],
    {},
    [[]],
    {"a": [1]},
    [None],
    float("nan"),
    float("inf"),
]
RAW = (
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff\xfe",
    b"\x00" * 50,
    b"null",
    b"[]",
    b"{}",
    b"\xef\xbb\xbf",
    b"",
    b"NaN",
)
ODD_OPTIONS = (
    "",
    " ",
    "-1",
    "0",
    "00",
    "1.5",
    "nan",
    "inf",
    "1e999",
    "0x10",
    "9" * 5000,
    "a/b",
    "../x",
    ".",
    "/",
    "-",
    "\udcff",
    "a\0b",
    "[]",
    "a" * 5000,
    "x.docx",
    "no_such_file",
    "é",
    "0/0",
    "3/2",
    "1/0",
    "1/2/3",
    "٣",
)


ODD_STEP = 5  # every fifth of them for an option, begun at another one for the next option


def damaged_bytes(draw: Callable[..., Any], data: bytes) -> bytes:
    """The bytes cut off, with a piece replaced, or with a line doubled or left out."""
    at = draw(st.integers(0, max(0, len(data) - 1)))
    how = draw(st.sampled_from(("cut", "insert", "replace", "double", "omit", "whole")))
    if how == "whole":
        return draw(st.sampled_from(RAW) | st.binary(max_size=60))
    if how == "cut":
        return data[:at]
    if how in ("double", "omit"):
        parts = data.splitlines(keepends=True) or [data]
        k = draw(st.integers(0, len(parts) - 1))
        return b"".join([*parts[:k], *(parts[k : k + 1] * (2 if how == "double" else 0)), *parts[k + 1 :]])
    piece = draw(st.sampled_from(RAW) | st.binary(min_size=1, max_size=8))
    return data[:at] + piece + data[at + (len(piece) if how == "replace" else 0) :]


def damaged_json(draw: Callable[..., Any], data: bytes) -> bytes:
    """One value of one row replaced by one of another kind, or its name left out."""
    text = data.decode()
    rows = [json.loads(line) for line in text.splitlines()] if text.count("\n") > 1 else [json.loads(text)]
    k = draw(st.integers(0, len(rows) - 1))
    parents: list[tuple[Any, Any]] = [(rows, k)]
    parents += [
        (parent, key)
        for parent in containers(rows[k])
        for key in (parent if isinstance(parent, dict) else range(len(parent)))
    ]
    parent, key = draw(st.sampled_from(parents))
    if isinstance(parent, dict) and draw(st.booleans()):
        del parent[key]
    else:
        parent[key] = draw(st.sampled_from(ODD_JSON))
    return "\n".join(json.dumps(row) for row in rows).encode()


def containers(value: Any) -> Iterator[Any]:
    """A value's dicts and lists, itself first."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def damage(draw: Callable[..., Any], case: Case, folder: Path) -> str:
    """Damage one file of the case in `folder`; returns its name."""
    name = draw(st.sampled_from(sorted(case.files)))
    path, data = folder / name, case.files[name]
    how = draw(st.sampled_from(("bytes", "bytes", "json", "json", "json", "gone", "folder", "link", "pipe")))
    if how == "json" and name.endswith((".json", ".jsonl")):
        path.write_bytes(damaged_json(draw, data))
    elif how in ("bytes", "json"):
        path.write_bytes(damaged_bytes(draw, data))
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "link":
            path.symlink_to(path.name)
        elif how == "pipe":
            os.mkfifo(path)
    return name


def stuck(*_: object) -> None:
    raise AssertionError(f"no answer after {HANG} s")


def run(words: list[str]) -> tuple[int, str, str]:
    """The command's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue()


def names_the_culprit(said: str, words: list[str], case: Case) -> bool:
    """Whether a message names a file or folder of the case, a word that was given, an option or a recipe's key."""
    names = {part for name in case.files for part in Path(name).parts} | {"model folder", "lambda must be"}
    names |= {f"'{Path(name).stem}'" for name in case.files}  # a result is called after its file
    shown = [word.encode("utf-8", "backslashreplace").decode()[:20] for word in words[1:]]
    given = {word for word in shown if len(word) > 1} | ({shown[-1]} - {""})
    return (
        any(name in said for name in names)
        or any(re.search(rf"(?<!\w){re.escape(word)}", said) for word in given)
        or re.search(r"--[a-z_0-9]+|[\w/]+\.(?:jpe?g|jsonl?)", said) is not None
    )


def stopped(*_: object, **__: object) -> None:
    raise InputError("the model folder is read from here on")


@contextlib.contextmanager
def ending_at(case: Case) -> Iterator[None]:
    """The case ends where the long work would begin."""
    with pytest.MonkeyPatch.context() as patch:
        if case.stop:
            patch.setattr(f"transformers_agci.{case.stop}", stopped)
        yield


def check_damaged(data: st.DataObject, case: Case) -> int:
    """Damage one file, run the command, and hold it to its promises; returns the exit code."""
    with in_a_folder_of(case) as folder:
        damage(data.draw, case, folder)
        return check(case.words.split(), case)


@contextlib.contextmanager
def in_a_folder_of(case: Case) -> Iterator[Path]:
    """A folder with the case's files; ../x is below another one that goes away, too."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "inside"
        folder.mkdir()
        with contextlib.chdir(folder):
            write(case, folder)
            yield folder


def check(words: list[str], case: Case) -> int:
    """Run a command and hold it to its promises; returns the exit code."""
    with ending_at(case):
        code, out, err = run(words)
    told = (words, code, out[-1000:], err[-1000:])
    assert code in (0, 1, 2), told
    assert "Traceback" not in out + err, told
    if code == 2 and err:
        sentence = err.splitlines()[-1]
        assert sentence.startswith("agci: ") and len(sentence) < LONGEST, told
    if code:
        assert names_the_culprit(err if code == 2 and err else out + err, words, case), told
    return code


def write(case: Case, folder: Path) -> None:
    """The case's files, undamaged."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What takes a minute on a busy machine is no hang."""
    import torch  # noqa: F401
    import transformers.generation.utils  # noqa: F401


READING = [name for name, case in CASES.items() if case.files]


@pytest.mark.parametrize("name", READING)
def test_a_damaged_input_ends_in_one_sentence(name: str, count_inputs: Callable[[int], None]) -> None:
    codes: list[int] = []

    @settings(
        max_examples=CASES[name].examples,
        derandomize=True,
        deadline=None,
        phases=(Phase.generate,),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def try_it(data: st.DataObject) -> None:
        codes.append(check_damaged(data, CASES[name]))

    try_it()
    count_inputs(len(codes))
    assert len(codes) >= CASES[name].examples and set(codes) & {1, 2}


def test_two_thousand_inputs_in_all() -> None:
    assert sum(CASES[name].examples for name in READING) >= 2000


def cases_of(command: Command) -> list[str]:
    words = command.words.split()
    return [name for name, case in CASES.items() if case.words.split()[: len(words)] == words]


def options_with_values(command: Command) -> list[str]:
    actions = command_parser(command)._actions
    return [action.option_strings[0] for action in actions if action.option_strings and action.nargs != 0]


def test_every_command_is_damaged() -> None:
    assert [command.words for command in COMMANDS if not cases_of(command)] == []


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if options_with_values(command)], ids=lambda command: command.words
)
def test_every_option_with_odd_values(command: Command, count_inputs: Callable[[int], None]) -> None:
    """Each of the command's options that take a value, with a fifth of the odd values each, another one every time."""
    case = CASES[cases_of(command)[0]]
    codes = []
    for number, option in enumerate(options_with_values(command)):
        for odd in ODD_OPTIONS[number % ODD_STEP :: ODD_STEP]:
            with in_a_folder_of(case):
                codes.append(check([*case.words.split(), option, odd], case))
    count_inputs(len(codes))
    assert codes and 2 in codes


# What these would read next is not there: a model, an adapter, an original checkpoint.
NEEDS_MORE = {
    "study",
    "demo",
    "train-embedded",
    "data build-samples",
    "downstream",
    "mmmu-pro",
    "self-check",
    "convert-llava",
    "check-recipe",
    "train-lora",
    "merge-lora",
    "probe",
    "similarity",
    "occlusion",
    "flow",
    "benchmark",
    "compare",
    "app",
}


@pytest.mark.parametrize("name", CASES)
def test_an_undamaged_case_succeeds_or_lacks_its_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(CASES[name], tmp_path)
    with ending_at(CASES[name]):
        code, out, err = run(CASES[name].words.split())
    assert code == (2 if name in NEEDS_MORE else 1 if name.startswith("data check") else 0), (out, err)
    assert name not in NEEDS_MORE or "model" in out + err or "config.json" in err
