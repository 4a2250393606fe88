"""Whole folders: under its name a folder is complete, or it is not there."""

import contextlib
import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import sync_folder
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.storage.reading import with_a_name

TEMPORARY = "agci-"  # how the folders begin that go with what was made in them


def is_temporary(folder: Path) -> bool:
    """Whether a folder was made for the time of a session only."""
    return folder.name.startswith(TEMPORARY) and folder.parent == Path(tempfile.gettempdir())


@contextlib.contextmanager
def committed_folder(
    target: Path,
    doing: str,
    *,
    is_finished: Callable[[Path], bool] | None = None,
    replace: bool = False,
    keep_equal: bool = False,
    wait: float = 0.0,
) -> Iterator[Path | None]:
    """A new, empty folder to fill, which takes the name `target` when the block ends without an exception.

    Until then it is a hidden sibling (`unfinished_folder`), which the next run removes, under the lock, where this one
    was killed. None is yielded, and nothing is to be done, where `target` is finished already.

    Args:
        doing: how another process's message describes this one, "converting into".
        is_finished: asked whether a `target` that holds something is what would be made; InputError: what else it is.
        replace: let the new folder take the place of another one, which is moved aside first and removed last.
        keep_equal: leave a `target` alone that holds the same files with the same bytes.
        wait: seconds to wait for another process that makes the same folder.

    Raises:
        InputError: another process is making `target`, or it holds something else and `replace` is off.
        OSError: the disk is full or may not be written; what was begun is removed.
    """
    target = with_a_name(target)
    with exclusive_lock(target, doing, wait=wait):
        unfinished = _after_a_kill(target)
        if _is_done(target, is_finished, replace):
            yield None
            return
        try:
            unfinished.mkdir()
            yield unfinished
            if not (keep_equal and target.is_dir() and same_files(unfinished, target)):
                _commit(unfinished, target)
        finally:
            with contextlib.suppress(OSError):
                _remove(unfinished)


def unfinished_folder(target: Path) -> Path:
    """Where `committed_folder` keeps the folder until it is complete."""
    return target.with_name(f".{target.name}.unfinished")


def same_files(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files with the same bytes, at any depth."""
    names = [
        sorted(file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir())
        for folder in (first, second)
    ]
    return names[0] == names[1] and all(same_bytes(first / name, second / name) for name in names[0])


def same_bytes(first: Path, second: Path) -> bool:
    """Whether two files are one, or hold the same bytes."""
    try:
        return first.samefile(second) or filecmp.cmp(first, second, shallow=False)
    except OSError:
        return False


def file_sizes(folder: Path, *patterns: str) -> dict[str, int]:
    """Bytes of the files in a folder that match a pattern, by name; for the manifest of the folder."""
    return {file.name: file.stat().st_size for pattern in patterns for file in sorted(folder.glob(pattern))}


def damaged_file(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """The first of these files that is missing or of another size, as words; None where all are as they were."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def _is_done(target: Path, is_finished: Callable[[Path], bool] | None, replace: bool) -> bool:
    """Whether there is nothing to make; InputError where `target` holds something that may not be replaced."""
    if not _holds_something(target):
        return False
    if is_finished is not None and is_finished(target):
        return True
    if not replace:
        raise InputError(f"{target} exists and is not empty; give another folder, or remove it.")
    return False


def _holds_something(target: Path) -> bool:
    return target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))


def _commit(unfinished: Path, target: Path) -> None:
    """Force the files to disk, then rename."""
    for path in sorted(unfinished.rglob("*"), reverse=True):
        _sync(path)
    sync_folder(unfinished)
    replaced = _replaced(target)
    if _holds_something(target):
        _remove(replaced)
        target.rename(replaced)
    elif target.exists():
        target.rmdir()
    unfinished.rename(target)
    sync_folder(target.parent)
    _remove(replaced)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
    elif path.is_file():
        with path.open("rb") as file, contextlib.suppress(OSError):  # a linked file may be one of a read-only disk
            os.fsync(file.fileno())


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _after_a_kill(target: Path) -> Path:
    """The place of the unfinished folder, empty; what a killed run had moved aside is back, or removed."""
    replaced, unfinished = _replaced(target), unfinished_folder(target)
    if replaced.exists():
        if target.exists():
            _remove(replaced)
        else:  # it was killed between its two renames
            replaced.rename(target)
    _remove(unfinished)
    return unfinished


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
