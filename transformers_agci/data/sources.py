"""Where images with captions come from: the builders of `datasets`, streamed, as one sequence of pairs."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.images import read_image, resolve_below
from transformers_agci.errors import InputError, short
from transformers_agci.storage.reading import is_file, is_folder, open_file, path_text

# Column names seen in image folders, img2dataset's shards and hub sets; the first one that a row fills counts.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "file_name", "image_path")
CAPTION_COLUMNS = ("caption", "txt", "text", "TEXT")
KEY_COLUMNS = ("__key__", "key")
METADATA = ("metadata.csv", "metadata.jsonl")
KINDS = "a folder with metadata.csv or metadata.jsonl, .parquet or .arrow files, WebDataset .tar files, or a hub id"


class Source(NamedTuple):
    """What the user points at. `path` is a folder, a file or a hub id; empty column names mean: find them."""

    path: str
    captions: str | None = None  # CSV or JSONL beside an image folder; default: its metadata.csv or metadata.jsonl
    image_column: str | None = None
    caption_column: str | None = None
    split: str = "train"  # of a hub set


class Pair(NamedTuple):
    """Pair `number` (from 0) of a source. `image` holds a file's bytes, or the sentence why there are none."""

    number: int
    key: str | None
    caption: str
    image: bytes | str


def read_pairs(source: Source, skip: int = 0) -> Iterator[Pair]:
    """Yield a source's pairs in its own order, the first `skip` left out, nothing decoded.

    Raises InputError for a source that is not there, of no known kind, without the columns, or that breaks midway.
    """
    try:
        import datasets
    except ImportError:
        raise InputError("Building needs the datasets library; install it with: pip install datasets.") from None
    datasets.disable_progress_bars()
    root, stream = _stream(source, datasets)
    number = skip
    try:
        for number, row in enumerate(stream.skip(skip), skip):
            yield _pair(number, row, source, root)
    except InputError:
        raise
    except Exception as error:  # a tar cut short, a lost connection: every builder has its own kinds
        raise InputError(
            f"The source {path_text(source.path)} broke after pair {number} ({_first_line(error)}); "
            "what was read is kept, the same command goes on from there."
        ) from error


def _stream(source: Source, datasets: Any) -> tuple[Path, Any]:
    """The folder that images given by name lie below, and the stream of rows with encoded images."""
    path = Path(source.path)
    if not is_file(path) and not is_folder(path):
        return path, _undecoded(_from_hub(source, datasets), datasets)
    listed = [path] if is_file(path) else sorted(file for file in path.rglob("*") if is_file(file))
    for builder, suffix in (("webdataset", ".tar"), ("parquet", ".parquet"), ("arrow", ".arrow")):
        files = [str(file) for file in listed if file.suffix == suffix]
        if files and source.captions is None:
            loaded = _load(datasets, source, builder, data_files={"train": files}, split="train")
            return path if path.is_dir() else path.parent, _undecoded(loaded, datasets)
    captions = _captions_file(source, path)
    options: dict[str, Any] = {}
    if captions.suffix == ".csv":
        options = {"features": _text_columns(captions, datasets), "keep_default_na": False}
    builder = "csv" if captions.suffix == ".csv" else "json"
    files = [str(captions)]
    return path, _load(datasets, source, builder, data_files={"train": files}, split="train", **options)


def _from_hub(source: Source, datasets: Any) -> Any:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source.path):
        raise InputError(f"There is no source {path_text(source.path)}: give {KINDS}.")
    return _load(datasets, source, source.path, split=source.split)


def _load(datasets: Any, source: Source, builder: str, **options: Any) -> Any:
    try:
        return datasets.load_dataset(builder, streaming=True, **options)
    except Exception as error:
        what = "is no local folder or file, and as a hub id it" if builder == source.path else "of this kind"
        raise InputError(
            f"The source {path_text(source.path)} {what} could not be opened ({_first_line(error)})."
        ) from error


def _undecoded(stream: Any, datasets: Any) -> Any:
    for name, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(name, datasets.Image(decode=False))
    return stream


def _captions_file(source: Source, folder: Path) -> Path:
    candidates = [Path(source.captions)] if source.captions else [folder / name for name in METADATA]
    found = next((file for file in candidates if is_file(file)), None)
    if found is None or found.suffix not in (".csv", ".jsonl", ".json") or not folder.is_dir():
        if source.captions and not is_file(source.captions):
            raise InputError(f"`captions`: {path_text(source.captions)}: there is no such file.")
        named = f" ({source.captions} is not a .csv or .jsonl file)" if source.captions else ""
        raise InputError(f"No images with captions were found in {path_text(source.path)}{named}: give {KINDS}.")
    return found


def _text_columns(path: Path, datasets: Any) -> Any:
    """Every column of a CSV as text: the caption "007" is not the number 7."""
    try:
        with open_file(path) as file:
            header = next(csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline="")), [])
    except UnicodeDecodeError:
        raise InputError(f"{path_text(path)}: the file is not UTF-8 text; save it as UTF-8.") from None
    except csv.Error as error:
        raise InputError(f"{path_text(path)}: the first line is not CSV ({error}).") from None
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path_text(path)}: the column {short(twice)} occurs twice.")
    return datasets.Features({name: datasets.Value("string") for name in header})


def _pair(number: int, row: Mapping[str, Any], source: Source, root: Path) -> Pair:
    images = (source.image_column,) if source.image_column else IMAGE_COLUMNS
    captions = (source.caption_column,) if source.caption_column else CAPTION_COLUMNS
    nested = row.get("json")
    caption = _filled(row, captions)
    if caption is None and isinstance(nested, Mapping):
        caption = _filled(nested, captions)
    image = _filled(row, images)
    if number == 0 and not set(images) & set(row):
        raise _no_column("image", images, row, source)
    if number == 0 and not (set(captions) & set(row) or isinstance(nested, Mapping)):
        raise _no_column("caption", captions, row, source)
    data, name = _bytes_of(image, root, f"{path_text(source.path)}, pair {number}")
    key = _filled(row, KEY_COLUMNS) or (Path(name).stem if name else None)
    text = caption.decode("utf-8", "replace") if isinstance(caption, bytes) else str(caption or "")
    return Pair(number, None if key is None else str(key), " ".join(text.split()), data)


def _bytes_of(image: Any, root: Path, where: str) -> tuple[bytes | str, str | None]:
    """The image's bytes (or why there are none) and its file name, from bytes, a path, or both."""
    name = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, str) else None
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if isinstance(data, bytes):
        return data, name
    if name is None:
        return f"{where}: there is no image.", None
    try:
        return read_image(resolve_below(root, name, where), where), name
    except InputError as error:
        return str(error), name


def _filled(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _no_column(what: str, names: Sequence[str], row: Mapping[str, Any], source: Source) -> InputError:
    return InputError(
        f"The source {path_text(source.path)} has no {what} column: looked for {', '.join(names)}; "
        f"it has {', '.join(row)}. Name it with `{what}_column`."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
