"""A built set: what it is asked to be, and the files that say what it holds (rows, dropped pairs, manifest)."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import PIL
from PIL import ImageColor

from transformers_agci.data.composites import image_name
from transformers_agci.data.draws import DISTRACTORS, draw
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.data.images import check_plain_name, resolve_below
from transformers_agci.data.pool import Pool
from transformers_agci.data.rows import Row, read_rows
from transformers_agci.data.sources import Source
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.json_file import json_bytes, read_json_object


@dataclass(frozen=True)
class BuildOptions:
    """What is built; everything here decides the bytes of the result (the number of workers does not).

    Files: `<folder>/<name>.json`, `<name>_negatives.json` (probe with negatives), images in `<folder>/<images>/`,
    `<name>.manifest.json`, and `<name>.dropped.jsonl` with every pair that was left out and why.
    """

    kind: Literal["probe", "similarity"]
    source: Source
    folder: Path
    name: str
    images: str = ""  # default: <name>_images
    items: int = 10_000  # at most; a source with fewer good pairs gives fewer
    pool: int = 0  # pairs that distractors are drawn from, the targets among them; default: `items`, at least 10
    grid: Grid = field(default_factory=Grid)
    quality: int = 75  # of the JPEGs, 1 to 95
    background: str = "white"
    seed: int = 0
    negatives: bool = True

    def __post_init__(self) -> None:
        if self.items < 1:
            raise InputError(f"`items` must be at least 1, but is {self.items}.")
        if not 1 <= self.quality <= 95:
            raise InputError(f"`quality` must be 1 to 95, but is {self.quality}.")
        if len(self.grid) != len(POSITIONS):
            raise InputError("Probe and similarity sets have a 3x3 grid.")
        check_plain_name(self.name, "name")
        check_plain_name(self.images or self.name, "images")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise InputError(
                f"`background` must be a colour as in HTML (white, #f0f0f0), but is {self.background!r}."
            ) from None

    @property
    def image_folder(self) -> Path:
        return self.folder / (self.images or f"{self.name}_images")

    @property
    def pairs_wanted(self) -> int:
        """How many good pairs are read: targets first, then those that only serve as distractors."""
        return self.items if self.kind == "similarity" else max(self.items, self.pool, DISTRACTORS + 2)

    def settings(self) -> Row:
        """What must be equal for a build to be continued; Pillow writes the JPEGs."""
        return {
            "kind": self.kind,
            "source": self.source._asdict(),
            "images": self.image_folder.name,
            "items": self.items,
            "pool": self.pairs_wanted,
            "grid": asdict(self.grid),
            "quality": self.quality,
            "background": self.background,
            "seed": self.seed,
            "negatives": self.has_negatives,
            "pillow": PIL.__version__,
        }

    @property
    def has_negatives(self) -> bool:
        return self.kind == "probe" and self.negatives


SUFFIX = ".manifest.json"


class BuildSummary(NamedTuple):
    """What was built: counts, the hash over all files, and whether there was nothing left to do."""

    items: int
    composites: int
    dropped: dict[str, int]
    sha256: str
    painted: int  # items painted by this call; the rest stood already
    rows_file: Path


def manifest_path(options: BuildOptions) -> Path:
    """Where the manifest of a set lies: beside its rows."""
    return options.folder / (options.name + SUFFIX)


def write_set(options: BuildOptions, pool: Pool, items: int, painted: int) -> BuildSummary:
    """Write rows, the dropped pairs and the manifest; the manifest comes last and says that the set is whole."""
    rows_files = [f"{options.name}.json"]
    write_atomic(options.folder / rows_files[0], map(json_line, _rows(options, pool, items, "Yes")))
    if options.has_negatives:
        rows_files.append(f"{options.name}_negatives.json")
        write_atomic(options.folder / rows_files[1], map(json_line, _rows(options, pool, items, "No")))
    drops = (json_line(drop._asdict()) for drop in pool.drops())
    write_atomic(options.folder / f"{options.name}.dropped.jsonl", drops)
    manifest: Row = {
        "settings": options.settings(),
        "items": items,
        "composites": items * len(POSITIONS),
        "dropped": dict(sorted(pool.dropped.items())),
        "rows_files": rows_files,
    }
    manifest["sha256"] = set_hash(options.folder, manifest)
    write_atomic(manifest_path(options), [json.dumps(manifest, indent=1).encode(), b"\n"])
    return summary_of(options, manifest, painted)


def summary_of(options: BuildOptions, manifest: Row, painted: int) -> BuildSummary:
    """The summary that a manifest and the number of newly painted items give."""
    return BuildSummary(
        manifest["items"],
        manifest["composites"],
        manifest["dropped"],
        manifest["sha256"],
        painted,
        options.folder / manifest["rows_files"][0],
    )


def read_manifest(path: Path) -> Row:
    """A set's manifest; InputError when it is not one."""
    try:
        manifest = read_json_object(path)
        manifest["settings"]["images"], manifest["sha256"], manifest["rows_files"][0]
    except (LookupError, TypeError):
        raise InputError(f"{path} is not the manifest of a built set: delete it or put the right one there.") from None
    return dict(manifest)


def set_hash(folder: Path, manifest: Row) -> str:
    """SHA-256 over a set: the hash of every rows file, then of every image in the rows' order.

    "" when the rows cannot be read; a missing file counts as such, so the hash differs.
    """
    total = hashlib.sha256()
    for name in manifest["rows_files"]:
        total.update(file_hash(resolve_below(folder, name, SUFFIX)).encode())
    images = resolve_below(folder, manifest["settings"]["images"], SUFFIX)
    try:
        for where, row in read_rows(folder / manifest["rows_files"][0]):
            total.update(file_hash(resolve_below(images, str(row.get("image")), where)).encode())
    except InputError:
        return ""
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file; "missing" when it is not there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return "missing"


def _rows(options: BuildOptions, pool: Pool, items: int, answer: str) -> Iterator[Row]:
    """Nine rows per item. A negative has the number and image of its composite and a caption that is not in it."""
    for item, pair in enumerate(pool.pairs[:items]):
        asked = pair if answer == "Yes" else pool.pairs[draw(item, len(pool.pairs), options.seed).absent]
        for k, position in enumerate(POSITIONS):
            yield {
                "id": item * len(POSITIONS) + k,
                "image": image_name(pair.key, k),
                "caption": asked.caption,
                "position": position,
                "answer": answer,
            }


def json_line(row: Any) -> bytes:
    """One line of JSON Lines; texts as they are, only half a surrogate pair is escaped."""
    return json_bytes(row, ascii_only=False)


def counted(counts: dict[str, int]) -> str:
    """Counts as words: "2 tiny image, 1 no caption"; "none"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()) if count) or "none"
