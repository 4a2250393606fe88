"""A built set: what it is asked to be, and the files that say what it holds (rows, dropped pairs, manifest)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import PIL
from PIL import ImageColor

from transformers_agci.data.composites import image_name, with_target
from transformers_agci.data.grid import Grid, largest_box
from transformers_agci.data.images import check_plain_name, resolve_below
from transformers_agci.data.probe_rows import LETTERS, MOST_CELLS, place_fields
from transformers_agci.data.rendered import KINDS
from transformers_agci.data.rows import Row, read_rows, require, require_object, require_text, require_whole_number
from transformers_agci.data.sources import Source
from transformers_agci.errors import InputError, short
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.json_file import json_bytes, read_json_object, write_json
from transformers_agci.storage.reading import path_text, read_bytes

# What a probe set shows: composites of captioned, written or drawn sub-images, several images, or texts to choose from.
Content = Literal["captions", "words", "digits", "shapes", "images", "options"]
CONTENTS: tuple[Content, ...] = ("captions", "words", "digits", "shapes", "images", "options")
SetKind = Literal["probe", "similarity"]
Distractors = Literal["random", "lookalike"]
SET_NAMES: Mapping[SetKind, str] = {"probe": "probe_840_840", "similarity": "similarity_840_840"}  # of the rows file
SET_FILES = (".json", "_negatives.json", ".manifest.json", ".dropped.jsonl")  # behind a set's name
SEQUENCE_CELLS = 4  # of a sequence of images or texts, where nothing else is said


@dataclass(frozen=True)
class BuildOptions:
    """What is built; everything here decides the bytes of the result (the number of workers does not).

    Files: `<folder>/<name>.json`, `<name>_negatives.json` (probe with negatives), images in `<folder>/<images>/`,
    `<name>.manifest.json`, and `<name>.dropped.jsonl` with every pair that was left out and why.
    """

    kind: SetKind
    source: Source  # not used by the rendered contents
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
    content: Content = "captions"
    distractors: Distractors = "random"
    target_sizes: tuple[int, ...] = ()  # longer sides of the target in px, each a set of items; () is the box's

    def __post_init__(self) -> None:
        if self.items < 1:
            raise InputError(f"`items` must be at least 1, but is {self.items}.")
        if not 1 <= self.quality <= 95:
            raise InputError(f"`quality` must be 1 to 95, but is {self.quality}.")
        self._check_grid()
        check_plain_name(self.name, "name")
        check_plain_name(self.images or self.name, "images")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise InputError(
                f"`background` must be a colour as in HTML (white, #f0f0f0), but is {self.background!r}."
            ) from None

    def _check_grid(self) -> None:
        rows, cols = self.grid.shape
        if self.kind == "similarity" and (rows, cols) != (3, 3):
            raise InputError(f"A similarity set has a 3x3 grid, not {rows}x{cols}.")
        if self.is_sequence and (rows != 1 or not 2 <= cols <= len(LETTERS)):
            raise InputError(
                f"For `kind` {self.content} the targets stand in a sequence: `rows` must be 1 and `cols` 2 to "
                f"{len(LETTERS)}, but they are {rows} and {cols}."
            )
        if not self.is_sequence and not (1 <= rows <= MOST_CELLS and 1 <= cols <= MOST_CELLS and rows * cols > 1):
            raise InputError(
                f"A grid has 2 cells at least and {MOST_CELLS} rows and columns at most, not {rows}x{cols}."
            )
        wrong = next((size for size in self.target_sizes if not 8 <= size <= self.grid.box), None)
        if wrong is not None:
            raise InputError(f"`target_sizes` must be 8 px to the box's {self.grid.box} px, but one is {wrong}.")
        if len(set(self.target_sizes)) < len(self.target_sizes):
            raise InputError(f"`target_sizes` must differ, but are {', '.join(map(str, self.target_sizes))}.")
        if self.is_sequence and self.target_sizes:
            raise InputError(f"`target_sizes` are for composites, not for {self.content}.")
        if self.is_rendered and self.distractors != "random":
            raise InputError(f"`distractors` cannot be chosen for {self.content}: they follow from the target.")

    @property
    def is_sequence(self) -> bool:
        """Whether cells are places in a sequence of images or texts instead of places in a composite."""
        return self.content in ("images", "options")

    @property
    def is_rendered(self) -> bool:
        """Whether the sub-images are drawn, so that no source is read."""
        return self.content in KINDS

    @property
    def others(self) -> int:
        """How many distractors an item has."""
        return len(self.grid) - 1

    @property
    def canvas(self) -> Grid:
        """What is painted: the grid, or an image as large as a box."""
        return Grid(self.grid.box, self.grid.box, 0, 0, 1, 1) if self.is_sequence else self.grid

    @property
    def image_folder(self) -> Path:
        return self.folder / (self.images or f"{self.name}_images")

    @property
    def pairs_wanted(self) -> int:
        """How many good pairs are read: targets first, then those that only serve as distractors."""
        return self.items if self.kind == "similarity" else max(self.items, self.pool, self.others + 2)

    def settings(self) -> Row:
        """What must be equal for a build to be continued; Pillow writes the JPEGs."""
        more = {
            "content": (self.content, "captions"),
            "distractors": (self.distractors, "random"),
            "target_sizes": (list(self.target_sizes), []),
        }  # named where they are not what sets had before there was a choice, so that those go on
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
            **{name: value for name, (value, before) in more.items() if value != before},
        }

    @property
    def has_negatives(self) -> bool:
        return self.kind == "probe" and self.negatives and self.content != "options"


def needed_source(content: Content, source: Source | None, of_source: Sequence[str] = ()) -> Source:
    """The source of a set; one without a path for drawn sub-images. InputError where it is missing, or too much.

    `of_source` are the options of a source that were given.
    """
    if (content in KINDS) == (source is not None):
        raise InputError(
            f"`kind` {content} draws its sub-images: omit `source`."
            if content in KINDS
            else f"`source` is needed for `kind` {content}: a folder of images with captions, for instance."
        )
    if source is None and of_source:
        raise InputError(f"`kind` {content} draws its sub-images: omit `{of_source[0]}`, which is of a `source`.")
    return source or Source("")


def grid_of(
    content: Content,
    rows: int | None = None,
    cols: int | None = None,
    *,
    canvas: int = Grid.canvas,
    box: int | None = None,
    gutter: float = Grid.gutter,
) -> Grid:
    """The grid of a set, with what was not given filled in: 3x3 or a sequence, the published box or the largest."""
    sequence = content in ("images", "options")
    rows, cols = rows or (1 if sequence else Grid.rows), cols or (SEQUENCE_CELLS if sequence else Grid.cols)
    most = largest_box(canvas, gutter, max(rows, cols))
    published = (rows, cols) == (Grid.rows, Grid.cols)
    return Grid.centred(canvas, box or (min(Grid.box, most) if published else most), gutter, rows, cols)


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


@dataclass(frozen=True)
class SetItem:
    """An item as its rows tell it: the stem of its files, its caption, and one that is in none of its composites.

    `others` are (key, caption) of the distractors in their order; `size` is the target's where there are several.
    """

    key: str
    caption: str
    absent: str
    others: tuple[tuple[str, str], ...] = ()
    size: int | None = None


def write_set(
    options: BuildOptions, items: Sequence[SetItem], drops: Iterable[Row], dropped: Mapping[str, int], painted: int
) -> BuildSummary:
    """Write rows, the dropped pairs and the manifest; the manifest comes last and says that the set is whole."""
    rows_files = [f"{options.name}.json"]
    write_atomic(options.folder / rows_files[0], map(json_line, _rows(options, items, "Yes")))
    if options.has_negatives:
        rows_files.append(f"{options.name}_negatives.json")
        write_atomic(options.folder / rows_files[1], map(json_line, _rows(options, items, "No")))
    write_atomic(options.folder / f"{options.name}.dropped.jsonl", map(json_line, drops))
    manifest: Row = {
        "settings": options.settings(),
        "items": len(items),
        "composites": len(items) * len(options.grid),
        "dropped": dict(sorted(dropped.items())),
        "rows_files": rows_files,
    }
    manifest["sha256"] = set_hash(options.folder, manifest)
    write_json(manifest_path(options), manifest, indent=1)
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
    manifest, where = read_json_object(path), path_text(path)
    try:
        require_text(require_object(manifest, "settings", where), "images", f'{where}, "settings"')
        require_text(manifest, "sha256", where)
        for name in ("items", "composites"):
            require_whole_number(manifest, name, where, 0)
        for reason in require_object(manifest, "dropped", where):
            require_whole_number(manifest["dropped"], reason, f'{where}, "dropped"', 0)
        names = require(manifest, "rows_files", where)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise InputError(f'{where}: "rows_files" must be a list of names of files, but is {short(names)}.')
    except InputError as error:
        settings = manifest.get("settings")
        of_a_run = isinstance(settings, dict) and "experiment" in settings
        remedy = (
            "it is the manifest of a run: give another `output_dir`"
            if of_a_run
            else "it is not the manifest of a built set: delete it or put the right one there"
        )
        raise InputError(f"{str(error).removesuffix('.')}; {remedy}.") from None
    return manifest


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
            several = row.get("images")
            for name in several if isinstance(several, list) and several else [row.get("image")]:
                total.update(file_hash(resolve_below(images, str(name), where)).encode())
    except InputError:
        return ""
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file; "missing" when there is none that can be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except InputError:
        return "missing"


def _rows(options: BuildOptions, items: Sequence[SetItem], answer: str) -> Iterator[Row]:
    """One row per cell of each item. A negative has the number and image of its composite and the absent caption."""
    cells = len(options.grid)
    for number, item in enumerate(items):
        for k in range(cells):
            yield {
                "id": number * cells + k,
                "image": image_name(item.key, k),
                "caption": item.caption if answer == "Yes" else item.absent,
                **place_fields(options.grid.shape, k),
                "answer": LETTERS[k] if options.content == "options" else answer,
                **_further_fields(options, item, k),
            }


def _further_fields(options: BuildOptions, item: SetItem, k: int) -> Row:
    """What other sets than composites of captioned images carry beside the published fields."""
    target, others = (item.key, item.caption), list(item.others)
    shown = with_target(target, others, k) if others else []
    fields: Row = {}
    if options.content == "images":
        fields["images"] = [f"{key}.jpg" for key, _ in shown]
    elif options.content == "options":
        fields["images"] = [f"{item.key}.jpg"]
        fields["options"] = [caption for _, caption in shown]
    if item.size is not None:
        fields["target_size"] = item.size
    return fields


def json_line(row: Any) -> bytes:
    """One line of JSON Lines; texts as they are, only half a surrogate pair is escaped."""
    return json_bytes(row, ascii_only=False)


def counts_text(counts: dict[str, int]) -> str:
    """Counts as words: "2 tiny image, 1 no caption"; "none"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()) if count) or "none"
