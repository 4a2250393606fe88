"""One process at a time, by a lock file that the kernel frees when its holder dies.

The lock is `flock` on the file, and the file goes away with the last holder, so that none is left to raise questions.
That needs one check which filelock makes in some of its versions only: who opened the file before it was removed gets
the lock of a file that no longer has a name, while the next one makes and locks a new file. filelock up to 3.20 lets
both in; from 3.21 it looks at the link count, but also removes the file itself, and a second removal takes away the
file of the next holder. So we lock ourselves, and count as holder only who holds the file that the name leads to.
"""

import contextlib
import errno
import os
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.storage.reading import with_a_name

POLL_SECONDS = 0.02
_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()  # of this process


class Lock:
    """An exclusive lock on the file `path`; not reentrant, and other threads of this process are kept out as well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait: float = 0.0) -> bool:
        """Take the lock, trying for `wait` seconds; False if another holder kept it all the time.

        Raises:
            OSError: the lock file cannot be made, or its file system has no locks.
        """
        assert self._descriptor is None, f"{self.path} is locked already"
        deadline = time.monotonic() + wait
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def release(self) -> None:
        """Give the lock back and remove its file; nothing happens if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        _held.discard(self)
        if descriptor is None:
            return
        if sys.platform != "win32" and _leads_to(self.path, descriptor):
            with contextlib.suppress(OSError):  # a folder that has become read-only: the file stays, unlocked
                self.path.unlink()
        _unlock(descriptor)
        os.close(descriptor)
        if sys.platform == "win32":
            with contextlib.suppress(OSError):  # only a file that nobody has open can be removed there
                self.path.unlink()

    def forget(self) -> None:
        """In a process forked from the holder: close the inherited file, which leaves the lock to the holder."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _try(self) -> bool:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                locked = _lock(descriptor)
                if locked and _leads_to(self.path, descriptor):
                    self._descriptor = descriptor
                    _held.add(self)
                    return True
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
            if not locked:
                return False
            # The holder before us removed the file between our opening and our locking it: open the new one.


def _forget_inherited() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    # A kernel lock lasts until its last copy is closed: a worker that outlives a killed run would go on holding it.
    os.register_at_fork(after_in_child=_forget_inherited)


@contextlib.contextmanager
def exclusive_lock(target: Path, doing: str, *, wait: float = 0.0) -> Iterator[None]:
    """Keep every other process of ours from `doing` ("converting into") the file or folder `target`; makes its parents.

    Raises:
        InputError: another process is at it, for `wait` seconds; `target` is the root.
        OSError: the folder around `target` cannot be written.
    """
    target = with_a_name(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(target.with_name(f".{target.name}.lock"))
    if not lock.acquire(wait):
        waited = f" (waited {wait:g} s)" if wait else ""
        raise InputError(f"Another program is {doing} {target}{waited}; wait for it or give another path.")
    try:
        yield
    finally:
        lock.release()


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether the name `path` leads to the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK):
                return False
            raise
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
