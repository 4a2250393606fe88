"""Fetch the published sets from the hub, or arrange a local copy of them, in whichever of three shapes they come."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from transformers_agci.data.built_set import json_line
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.images import resolve_below
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.data.rows import SUFFIXES, Row, read_rows
from transformers_agci.errors import InputError, short
from transformers_agci.storage.atomic import open_atomic, write_atomic
from transformers_agci.storage.reading import is_folder, path_text

# The older names come second (the sets were first published as BaPA's).
HUB_SETS = {
    "probe": ("AAAndyZ/AGCI_Probe_Dataset", "AAAndyZ/BaPA_Probe_Dataset"),
    "similarity": ("AAAndyZ/AGCI_Similarity_Dataset", "AAAndyZ/BaPA_Similarity_Dataset"),
}

FOLDERS = {"probe": Path("probe_datasets"), "similarity": Path("similarity_data")}  # where downloads go

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_RATIO = 100  # of unpacked to packed bytes; images give 1, rows up to 20
ENTRY = 512  # bytes that a member counts for beside its content, as in a tar
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
SMALL = 1 << 26  # bytes that any archive may unpack to


class Fetched(NamedTuple):
    """A rows file with the folder that its images lie below."""

    rows: Path
    images: Path


def download(kind: str, folder: Path) -> Path:
    """Download a hub set into `folder`/<its name>; a broken-off download goes on. Returns that folder.

    Raises InputError in one sentence when the hub cannot be reached or has neither name.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    for name in HUB_SETS[kind]:
        target = folder / name.split("/")[1]
        try:
            snapshot_download(name, repo_type="dataset", local_dir=target)
        except RepositoryNotFoundError:
            continue
        except (LocalEntryNotFoundError, OfflineModeIsEnabled):
            raise _undownloaded(name, "the hub is out of reach") from None
        except Exception as error:  # a broken connection shows as one of a dozen kinds, depending on where it breaks
            raise _undownloaded(name, f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}") from error
        return target
    raise InputError(f"The hub has none of {', '.join(HUB_SETS[kind])}: give a copy with `local_copy`.")


def copy_or_download(kind: str, folder: Path | None) -> Path:
    """The folder of a set: a copy that lies in `folder`, else the download into it, which goes on if it broke off."""
    if folder is not None and is_folder(folder):
        begun = any(is_folder(folder / name.split("/")[1]) for name in HUB_SETS[kind])
        if not begun and any(folder.iterdir()):
            return folder
    elif folder is not None and folder.exists():
        raise InputError(f"`output_dir` {path_text(folder)} is a file; give a folder.")
    return download(kind, folder or FOLDERS[kind])


def _undownloaded(name: str, reason: str) -> InputError:
    return InputError(
        f"The hub set {name} could not be downloaded ({reason}): try again online, the download goes on; or put a copy "
        "into a folder and give it with `local_copy`."
    )


def describe(folder: Path) -> str:
    """What a folder holds, by kind of file: "2 .json, 90000 .jpg"."""
    counts = Counter("".join(path.suffixes[-2:]) if ".tar" in path.suffixes else path.suffix for path in _files(folder))
    return ", ".join(f"{count} {suffix or 'other'}" for suffix, count in sorted(counts.items())) or "nothing"


def arrange(folder: Path, max_ratio: int = MAX_RATIO) -> list[Fetched]:
    """Make a downloaded set usable in place: unpack archives, write parquet's images out, pair rows and images.

    Done again, it leaves alone what stands already. Nothing is written through a link that leads out of the folder.
    Raises InputError when no rows or no images are found, and where an archive unpacks to more than `max_ratio` times
    its size.
    """
    if not is_folder(folder):
        raise InputError(f"`local_copy`: there is no folder {path_text(folder)}.")
    for path in _files(folder):
        if path.name.endswith(ARCHIVES):
            unpack(path, folder, max_ratio)
    tables = [path for path in _files(folder) if path.suffix == ".parquet"]
    if tables:
        try:
            _write_out(tables, folder)
        except OSError as error:  # a full disk, a file where a folder has to be
            raise InputError(f"{folder}: images and rows cannot be written there ({error}).") from None
    found = [Fetched(path, _image_root(path, folder)) for path in _files(folder) if _holds_rows(path)]
    if not found:
        raise InputError(f"{folder} holds no rows of a probe or similarity set, only {describe(folder)}.")
    return found


def _files(folder: Path) -> list[Path]:
    """All files but the hub library's own bookkeeping."""
    every = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in every if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _holds_rows(path: Path) -> bool:
    if not path.name.endswith(SUFFIXES) or path.suffix == ".parquet":
        return False
    try:
        where, fields = next(read_rows(path))
        ProbeRow.parse(fields, where)
    except (InputError, StopIteration):
        return False
    return True


def _image_root(rows: Path, folder: Path) -> Path:
    """The folder below which the first row's image lies."""
    where, fields = next(read_rows(rows))
    image = ProbeRow.parse(fields, where).image
    resolve_below(folder, image, where)
    for path in _files(folder):
        if path.as_posix().endswith("/" + image):
            return path.parents[len(Path(image).parts) - 1]
    raise InputError(f"{where}: the image {image} is nowhere below {folder}, which holds {describe(folder)}.")


def _write_out(tables: list[Path], folder: Path) -> None:
    """Rows and images of a set's parquet files as loose files: <folder's name>.jsonl and images/."""

    def rows() -> Iterator[bytes]:
        for number, (where, row) in enumerate(row for table in tables for row in read_rows(table)):
            data, name = _image_of(row, number, where)
            path = resolve_below(folder, f"images/{name}", where)  # refuses an `images` that leads elsewhere
            if not (path.is_file() and path.stat().st_size == len(data)):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, [data])
            yield json_line({"id": number, **row, "image": name})

    write_atomic(folder / f"{folder.name}.jsonl", rows())


def _image_of(row: Row, number: int, where: str) -> tuple[bytes, str]:
    image: Any = row.get("image")
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    if not isinstance(data, bytes):
        raise InputError(f'{where}: "image" must hold an image\'s bytes; the row has: {", ".join(row)}.')
    other = next((name for name, value in row.items() if name != "image" and isinstance(value, bytes)), None)
    if other is not None:
        raise InputError(f'{where}: the column {short(other)} holds bytes, too; only "image" may.')
    if path is not None and not isinstance(path, str):
        raise InputError(f'{where}: the "path" of "image" must be a text, but is {short(path)}.')
    item, k = divmod(number, len(POSITIONS))
    return data, path or f"{item:09d}_{k}.jpg"


class Member(NamedTuple):
    """A regular file in an archive; `file` is read once, before the next member is asked for."""

    name: str
    size: int  # bytes
    file: IO[bytes]


def unpack(archive: Path, target: Path, max_ratio: int = MAX_RATIO) -> int:
    """Unpack an archive's regular files below `target`; returns how many it holds.

    Raises InputError for a member whose path leaves `target`, for one that is a link or a device, for an archive
    that is broken, for one that unpacks to more than `max_ratio` times its size, and for one that is larger than the
    free space.
    """
    count = unpacked = 0
    try:
        most = max(SMALL, max_ratio * archive.stat().st_size)
        for member in _members(archive):
            path = resolve_below(target, member.name, archive.name)
            count += 1
            unpacked += member.size + ENTRY
            if unpacked > most:
                raise InputError(
                    f"{archive.name} unpacks to more than {max_ratio} times its size of {archive.stat().st_size} bytes "
                    f"(with {short(member.name)}), as an archive made to fill the disk does; if that is right, raise "
                    "`max_unpack_ratio`."
                )
            if path.is_file() and path.stat().st_size == member.size:
                continue
            if member.size > shutil.disk_usage(target).free:
                raise InputError(f"{archive.name}: there is no room for {member.name} ({member.size} bytes).")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomic(path) as file:
                shutil.copyfileobj(member.file, file)
    except InputError:
        raise
    except (*BROKEN, EOFError, OSError, RuntimeError, ValueError) as error:
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
    return InputError(f"{archive.name}: {short(name)} is a link or a device; only plain files are unpacked.")
