"""Files and folders that appear whole or not at all, and locks that let one holder in."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Never

import pytest

from transformers_agci.errors import InputError
from transformers_agci.storage import atomic, folder, lock
from transformers_agci.storage.atomic import open_atomic, remove_leftovers, write_atomic
from transformers_agci.storage.folder import committed_folder, damaged_file, file_sizes, same_files, unfinished_folder
from transformers_agci.storage.json_file import json_bytes, read_json_object, write_json
from transformers_agci.storage.lock import Lock, exclusive_lock
from transformers_agci.storage.settings import check_same_settings, differences


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


# --- whole files ---


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


# --- locks ---


def test_one_holder_at_a_time_and_no_file_afterwards(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire(wait=0.05)
    first.release()
    assert not (tmp_path / "lock").exists()
    assert second.acquire()
    second.release()
    assert names(tmp_path) == []


def test_a_lock_on_a_removed_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gap that filelock up to 3.20 has: opened before the holder removed the file, locked afterwards."""
    path = tmp_path / "lock"
    first, second, third = Lock(path), Lock(path), Lock(path)
    assert first.acquire()
    flock, calls = lock._lock, []

    def after_the_release(descriptor: int) -> bool:
        if not calls:
            first.release()
        calls.append(descriptor)
        return flock(descriptor)

    monkeypatch.setattr(lock, "_lock", after_the_release)
    assert second.acquire()
    assert len(calls) == 2  # the removed file, then the one that the name leads to
    assert not third.acquire()
    second.release()


def test_releasing_does_not_remove_the_file_of_another_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    path.unlink()  # somebody tidied up
    assert second.acquire()
    first.release()
    assert path.exists()
    assert not Lock(path).acquire()
    second.release()


def test_contending_processes_never_overlap(tmp_path: Path) -> None:
    """Four processes add to a counter that only the lock protects; every one of their additions is in the sum."""
    program = (
        "import sys, pathlib\n"
        "from transformers_agci.storage.lock import Lock\n"
        "folder = pathlib.Path(sys.argv[1]); counter = folder / 'counter'\n"
        "for _ in range(150):\n"
        "    lock = Lock(folder / 'lock')\n"
        "    assert lock.acquire(wait=60)\n"
        "    counter.write_text(str(int(counter.read_text()) + 1))\n"
        "    lock.release()\n"
    )
    (tmp_path / "counter").write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    assert (tmp_path / "counter").read_text() == "600"
    assert names(tmp_path) == ["counter"]


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\n"
        "from transformers_agci.storage.lock import Lock\n"
        "lock = Lock(pathlib.Path(sys.argv[1])); assert lock.acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "lock"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.exists()
    mine = Lock(path)
    assert mine.acquire()
    mine.release()
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_worker_that_outlives_its_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from transformers_agci.storage.lock import Lock\n"
        f"lock = Lock(Path({str(path)!r}))\n"
        "assert lock.acquire()\n"
        "worker = os.fork()\n"
        "if not worker:\n"
        "    lock.release()  # what a worker leaves behind is not the holder's\n"
        "    os.close(1), os.close(2), time.sleep(60), os._exit(0)\n"
        "time.sleep(0.2)\n"
        "print(worker, flush=True)\n"
        "sys.stdin.read(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin
    assert holder.stdout
    worker = int(holder.stdout.readline())
    try:
        assert not Lock(path).acquire()  # the worker released nothing
        holder.communicate("x")
        os.kill(worker, 0)  # it lives on
        later = Lock(path)
        assert later.acquire(1.0)
        later.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_second_process_is_told_who_is_at_work(tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "new" / "out", "converting into"),
        pytest.raises(InputError, match=r"Another program is converting into .*out; wait for it"),
        exclusive_lock(tmp_path / "new" / "out", "converting into"),
    ):
        pass
    assert names(tmp_path / "new") == []


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        Lock(tmp_path / "lock").acquire()


# --- whole folders ---


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with committed_folder(target, "making") as made:
        assert made is not None
        (made / "a").write_bytes(b"1")
        assert not target.exists()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), InputError("no")])
def test_a_folder_that_fails_is_removed(tmp_path: Path, error: Any) -> Never:
    with pytest.raises(type(error)), committed_folder(tmp_path / "out", "making") as made:
        (made / "a").write_bytes(b"1")
        raise error
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    unfinished_folder(target).mkdir()
    (unfinished_folder(target) / "old").write_bytes(b"")
    with committed_folder(target, "making") as made:
        assert names(made) == []
    assert names(tmp_path) == ["out"]


def test_a_linked_unfinished_folder_is_not_entered(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"")
    unfinished_folder(tmp_path / "out").symlink_to(victim)
    with committed_folder(tmp_path / "out", "making") as made:
        (made / "a").write_bytes(b"")
    assert names(victim) == ["precious"]
    assert names(tmp_path / "out") == ["a"]


def test_a_finished_folder_needs_no_work_and_another_one_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_bytes(b"1")
    with committed_folder(target, "making", is_finished=lambda found: (found / "a").exists()) as made:
        assert made is None
    with (
        pytest.raises(InputError, match="exists and is not empty"),
        committed_folder(target, "making", is_finished=lambda found: False),
    ):
        pass
    assert (target / "a").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"x") if kind == "file" else target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists and is not empty"), committed_folder(target, "making"):
        pass


def test_an_empty_folder_is_filled_and_another_one_replaced_on_demand(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for content in (b"1", b"2"):
        with committed_folder(target, "making", replace=True) as made:
            (made / "a").write_bytes(content)
    assert (target / "a").read_bytes() == b"2"
    assert names(tmp_path) == ["out"]


def test_an_equal_folder_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    numbers = set()
    for _ in range(2):
        with committed_folder(target, "making", replace=True, keep_equal=True) as made:
            (made / "a").write_bytes(b"1")
        numbers.add((target / "a").stat().st_ino)
    assert len(numbers) == 1
    with committed_folder(target, "making", replace=True, keep_equal=True) as made:
        (made / "a").write_bytes(b"2")
    assert (target / "a").read_bytes() == b"2"
    assert names(tmp_path) == ["out"]


def test_a_run_killed_between_its_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_bytes(b"old")
    rename = Path.rename

    def killed(self: Path, to: Path) -> Path:
        if to == target:
            raise SystemExit("killed")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(folder, "_remove", lambda path: None)
    with pytest.raises(SystemExit), committed_folder(target, "making", replace=True):
        pass
    monkeypatch.undo()
    assert not target.exists()
    with committed_folder(target, "making", is_finished=lambda found: True) as made:
        assert made is None
    assert (target / "a").read_bytes() == b"old"


def test_two_processes_make_one_folder(tmp_path: Path) -> None:
    with (
        committed_folder(tmp_path / "out", "making") as made,
        pytest.raises(InputError, match="Another program is making"),
        committed_folder(tmp_path / "out", "making"),
    ):
        pass
    assert made is not None
    assert names(tmp_path) == ["out"]


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12")
    sizes = file_sizes(tmp_path, "*.safetensors", "*.json")
    assert sizes == {"a.safetensors": 2}
    assert damaged_file(tmp_path, sizes) is None
    (tmp_path / "a.safetensors").write_bytes(b"1")
    assert damaged_file(tmp_path, sizes) == "a.safetensors has 1 bytes instead of 2"
    (tmp_path / "a.safetensors").unlink()
    assert damaged_file(tmp_path, sizes) == "a.safetensors is missing"


def test_same_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_bytes(b"1")
    assert same_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "deep" / "x").write_bytes(b"2")
    assert not same_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "deep" / "x").write_bytes(b"1")
    (tmp_path / "b" / "y").write_bytes(b"")
    assert not same_files(tmp_path / "a", tmp_path / "b")


# --- JSON and settings ---


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
