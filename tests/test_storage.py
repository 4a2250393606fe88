"""Files that appear whole or not at all; JSON and settings that are read again."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.cli import main
from transformers_agci.embedded import embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.storage import atomic
from transformers_agci.storage.atomic import open_atomic, remove_leftovers, write_atomic
from transformers_agci.storage.json_file import json_bytes, read_json_object, write_json
from transformers_agci.storage.reading import with_a_name
from transformers_agci.storage.settings import check_same_settings, differences


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_file_is_the_old_one_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    with open_atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def parts() -> Iterator[Any]:
        yield b"begun"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, parts())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_the_bytes_are_forced_to_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: (order.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("rename"), replace(self, target))[1])
    write_atomic(tmp_path / "a", b"x")
    assert order == ["sync", "rename", "sync"]  # the file, its name, the folder


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tmp_path / "a.json"
    link.symlink_to(victim)
    write_atomic(link, b"new")
    assert victim.read_bytes() == b"precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


def test_the_unfinished_name_cannot_be_foreseen_and_an_existing_one_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for number in range(20):
        with open_atomic(tmp_path / "a") as file:
            seen.add(
                file.name if isinstance(file.name, str) else str(Path(f"/proc/self/fd/{file.fileno()}").readlink())
            )
            file.write(str(number).encode())
    assert len(seen) == 20
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "0" * 16)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    trap = tmp_path / f".b.{'0' * 16}.new"
    trap.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "b", b"x")
    assert victim.read_bytes() == b"precious"


def test_permissions_stay_those_of_the_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"1")
    path.chmod(0o640)
    write_atomic(path, b"2")
    write_atomic(tmp_path / "b", b"3", mode_of=path)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o640, 0o640]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", b"x")
    leftover = tmp_path / f".a.json.{'0123456789abcdef'}.new"
    others = [tmp_path / ".a.json.new", tmp_path / f".b.json.{'0' * 16}.new", tmp_path / "a.json.part"]
    for path in (leftover, *others):
        path.write_bytes(b"")
    remove_leftovers(tmp_path / "a.json", tmp_path / "missing" / "a.json")
    assert not leftover.exists()
    assert all(path.exists() for path in others)


def test_a_process_killed_while_it_writes_leaves_the_old_file_and_a_removable_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    program = (
        "import os, signal, sys, pathlib\n"
        "from transformers_agci.storage.atomic import open_atomic\n"
        "with open_atomic(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    remove_leftovers(path)
    assert names(tmp_path) == ["a.json"]


def test_json_is_written_as_ever(tmp_path: Path) -> None:
    assert json_bytes({"a": "ü"}) == b'{"a": "\\u00fc"}\n'
    assert json_bytes({"a": "ü"}, ascii_only=False) == '{"a": "ü"}\n'.encode()
    assert json.loads(json_bytes("\ud800", ascii_only=False)) == "\ud800"
    write_json(tmp_path / "a.json", {"a": [1]}, indent=1)
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1\n ]\n}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"[]", "must hold a JSON object, but holds a list"),
        (b"null", "holds null"),
        (b"9" * 5000, "is too large"),
        (b"[" * 200_000, "nested deeper than 100"),
    ],
)
def test_a_file_that_is_no_json_object_is_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        read_json_object(path, "give --overwrite to start over")
    assert str(error.value).endswith("; give --overwrite to start over.")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_differences_name_every_setting() -> None:
    assert differences({"a": [1], "b": {"c": 1}}, {"a": (1,), "b": {"c": 2}, "d": 3}) == [
        "b.c is 1 there and 2 now",
        "d is 'not set' there and 3 now",
    ]
    with pytest.raises(InputError, match=r"^x was made with other settings: a is 1 there and 2 now\. Do y\.$"):
        check_same_settings("x was made", {"a": 1}, {"a": 2}, "Do y.")
    check_same_settings("x was made", {"a": 1}, {"a": 1}, "Do y.")


def test_places_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_a_name(Path("a.jsonl")) == Path("a.jsonl")
    assert with_a_name(Path()) == tmp_path
    assert with_a_name(Path("..")) == tmp_path.parent
    with pytest.raises(InputError, match="give one within it"):
        with_a_name(Path("/"))


@pytest.mark.parametrize("words", ["set-lambda {model} 0.5 --output /", "probe --items 1 --answer_file / --quiet"])
def test_the_root_as_output_is_one_sentence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format(model=embedded_model_path()) for word in words.split()]) == 2
    assert capsys.readouterr().err.startswith("agci: / is not a name that can be given to a file or folder")
