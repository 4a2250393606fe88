"""Unpack zip and tar files, never outside their folder; what lies there whole already is left alone."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from transformers_agci.data.images import resolve_below
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import open_atomic

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


class Member(NamedTuple):
    """A regular file in an archive; `file` is read once, before the next member is asked for."""

    name: str
    size: int  # bytes
    file: IO[bytes]


def unpack(archive: Path, target: Path) -> int:
    """Unpack an archive's regular files below `target`; returns how many it holds.

    Raises InputError for a member whose path leaves `target`, for one that is a link or a device, for an archive
    that is broken, and for one whose content is larger than the free space.
    """
    count = 0
    try:
        for member in _members(archive):
            path = resolve_below(target, member.name, archive.name)
            count += 1
            if path.is_file() and path.stat().st_size == member.size:
                continue
            if member.size > shutil.disk_usage(target).free:
                raise InputError(f"{archive.name}: there is no room for {member.name} ({member.size} bytes).")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomic(path) as file:
                shutil.copyfileobj(member.file, file)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"{archive} is broken or cannot be unpacked after {count} files ({error}).") from None
    return count


def _members(archive: Path) -> Iterator[Member]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
                if is_link:
                    raise _not_a_file(archive, entry.filename)
                if not entry.is_dir():
                    with packed.open(entry) as file:
                        yield Member(entry.filename, entry.file_size, file)
        return
    with tarfile.open(archive) as tar:
        for info in tar:
            if info.isdir():
                continue
            opened = tar.extractfile(info) if info.isreg() else None
            if opened is None:
                raise _not_a_file(archive, info.name)
            yield Member(info.name, info.size, opened)


def _not_a_file(archive: Path, name: str) -> InputError:
    return InputError(f"{archive.name}: {name!r} is a link or a device; only plain files are unpacked.")
