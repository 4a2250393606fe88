"""Locks let one holder in, whatever becomes of the other processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_storage import names

from transformers_agci.errors import InputError
from transformers_agci.storage import lock
from transformers_agci.storage.lock import Lock, exclusive_lock


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
