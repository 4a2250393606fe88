"""One process at a time for a folder that is made as a whole, or goes on where it was left."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from transformers_agci.errors import InputError


@contextlib.contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """No other process of ours writes `folder` meanwhile; makes its parents. `doing`: "converting into".

    Raises:
        InputError: another one does.
        OSError: the folder's parent cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"Another program is {doing} {folder}; wait for it or name another folder.") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
