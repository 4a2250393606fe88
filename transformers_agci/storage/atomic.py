"""Whole files: under its name a file is the old one or the new one, never a part, whatever is killed when."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from transformers_agci.errors import InputError
from transformers_agci.storage.reading import path_text

# The standard streams by name. They are written to, not replaced: the reader on the other side has them open already.
STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
_OWN_STREAM = re.compile(r"(?:/dev/fd|/proc/self/fd)/([0-9]{1,6})")


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, mode_of: Path | None = None, sync: bool = True) -> None:
    """Write a whole file; see `open_atomic` for the options."""
    with open_atomic(path, mode_of=mode_of, sync=sync) as file:
        if isinstance(data, bytes):
            file.write(data)
        else:
            file.writelines(data)


def write_output(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a whole file where a user wants it; the folders above it are made where they are not there.

    InputError where that is impossible.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"'{path_text(path)}' cannot be written: {reason}; choose another path.") from error


@contextlib.contextmanager
def open_atomic(
    path: Path, *, mode_of: Path | None = None, sync: bool = True, temporary_in: Path | None = None
) -> Iterator[IO[bytes]]:
    """A file to write, which takes the name `path` when the block ends without an exception and vanishes otherwise.

    Until then it has a name that nobody can foresee (`temporary_in`, or beside `path`), made with O_EXCL and
    O_NOFOLLOW, so that no link laid there beforehand is followed. A link named `path` is replaced, not written through.
    What a killed run leaves is removed by `remove_leftovers`.

    Args:
        mode_of: the file whose permissions the new one gets; by default those of the file it replaces, if any.
        sync: force the bytes to disk before the name changes. Off only where a later run checks the content anyway.
        temporary_in: folder of the unfinished file, on the same file system.

    Raises:
        OSError: the disk is full, the folder is gone or may not be written.
    """
    if is_stream(path):
        with contextlib.suppress(BrokenPipeError), _open_stream(path) as stream:  # a reader that has seen enough
            yield stream
        return
    temporary = (temporary_in or path.parent) / f".{_short_name(path)}.{secrets.token_hex(8)}.new"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        _copy_mode(mode_of or path, temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def cannot_write(place: Path, error: OSError, remedy: str = "make room there or give another path") -> InputError:
    """The error for a place that the disk does not take: full, read-only, forbidden, or gone."""
    return InputError(f"{place} cannot be written ({error.strerror or error}); {remedy}.")


def remove_leftovers(*paths: Path) -> None:
    """Remove what killed runs left of writing `paths`. Only for the holder of the lock that guards these files."""
    for path in paths:
        name = re.compile(rf"\.{re.escape(_short_name(path))}\.[0-9a-f]{{16}}\.new")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for leftover in [found for found in path.parent.iterdir() if name.fullmatch(found.name)]:
                leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _short_name(path: Path) -> str:
    """The file's name, or a hash of a name so long that nothing could be added to it."""
    encoded = os.fsencode(path.name)
    return path.name if len(encoded) <= 200 else hashlib.sha256(encoded).hexdigest()


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a device or a standard stream."""
    if str(path).startswith(STREAMS):
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing there, or a name that no file can have
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _open_stream(path: Path) -> IO[bytes]:
    """A stream to write to; those of this process at the place where they are.

    Opened by its name, a standard output that the shell has redirected to a file would be cut to nothing and written
    from the file's beginning, over what stands there: `(date; agci metrics ...) > file`.
    """
    own = _OWN_STREAM.fullmatch(str(path))
    number = {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(path), int(own[1]) if own else None)
    return path.open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def _copy_mode(like: Path, path: Path) -> None:
    if like.is_file():
        shutil.copymode(like, path)
