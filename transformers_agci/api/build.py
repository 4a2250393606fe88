"""Probe and similarity sets built in Python, of your own images or of any source of captioned ones."""

import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.api.arguments import checked, elements, maybe_whole, one_of, whole_number
from transformers_agci.api.folders import place_of
from transformers_agci.api.images import IMAGES, written_source
from transformers_agci.api.rows import Displayed, tables_html
from transformers_agci.data.build import build
from transformers_agci.data.built_set import (
    SET_NAMES,
    BuildOptions,
    Content,
    Distractors,
    counts_text,
    grid_of,
    needed_source,
)
from transformers_agci.data.grid import Grid
from transformers_agci.data.sources import Source
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.position.data import ProbeData, read_data
from transformers_agci.inference.progress import ticking
from transformers_agci.report.table import Table

Images = Iterable[Any] | str | Path


@dataclass(frozen=True, eq=False, repr=False)
class BuiltSet(Displayed):
    """A set that was built, or was there already: its files, its counts. `data` is what `probe` and the others take.

    dropped       reason -> pairs of the source that were left out for it; <name>.dropped.jsonl names each
    already_done  items that an earlier call had built
    sha256        over rows and images
    """

    rows_file: Path
    negatives_file: Path | None
    img_path: Path
    items: int
    composites: int
    dropped: Mapping[str, int]
    already_done: int
    sha256: str
    asked: int | None = None  # items, where there are fewer than that
    _kept: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)

    @cached_property
    def data(self) -> ProbeData:
        """The rows with their images, those of the negatives too. It keeps a temporary folder as long as it lives."""
        read = read_data(self.rows_file, self.img_path, self.negatives_file)
        return read if self._kept is None else keeping(self._kept, read)

    @property
    def text(self) -> str:
        """What `agci data build-probe` prints."""
        items, composites = counted(self.items, "item"), counted(self.composites, "composite")
        fewer = (
            "" if self.asked is None else f"{self.asked} items were asked for: the source has no more usable pairs\n"
        )
        negatives = (
            "" if self.negatives_file is None else f"{self.negatives_file}: the same composites, right answer No\n"
        )
        return (
            f"{self.rows_file}: {items}, {composites}; {counted(self.already_done, 'item')} already done\n"
            f"{fewer}{negatives}dropped: {counts_text(dict(self.dropped))}\nsha256 of the set: {self.sha256}"
        )

    def _repr_html_(self) -> str:
        counts = [["items", str(self.items)], ["composites", str(self.composites)]]
        dropped = [[f"dropped: {reason}", str(count)] for reason, count in sorted(self.dropped.items()) if count]
        return tables_html([Table(str(self.rows_file), ["", "n"], counts + dropped)])


@checked
def build_probe(
    source: Images | None = None,
    captions: Iterable[str] | str | Path | None = None,
    folder: str | Path | None = None,
    *,
    kind: Content = BuildOptions.content,
    rows: int | None = None,
    cols: int | None = None,
    distractors: Distractors = BuildOptions.distractors,
    target_sizes: Sequence[int] = (),
    items: int | None = None,
    pool: int = BuildOptions.pool,
    negatives: bool = True,
    seed: int = BuildOptions.seed,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    name: str = SET_NAMES["probe"],
    images: str = "",
    canvas: int = Grid.canvas,
    box: int | None = None,
    gutter: float = Grid.gutter,
    background: str = BuildOptions.background,
    quality: int = BuildOptions.quality,
    workers: int = 1,
    progress: bool = True,
    overwrite: bool = False,
) -> BuiltSet:
    """Build a probe set: composites in which each image is the target in every cell, among others.

    `source` is a list of images (files, PIL images, encoded bytes) with a list of `captions`; or a folder, a parquet or
    tar file or a hub id of captioned images, `captions` then a file with them where the folder has none. `kind`:
    captions; words, digits or shapes, which are drawn and need no source; images (several instead of a composite);
    options (one image, several captions to choose from). Lengths are in pixels: `canvas` the composite's side, `box` a
    cell's, `target_sizes` the target's longer side, an item for each. `images` names the folder of the composites. No
    byte depends on `workers`. With a `folder` the set stays there, and the same call goes on after an interruption.

    >>> from transformers_agci import build_probe
    >>> built = build_probe(kind="shapes", items=2, canvas=252, progress=False)
    >>> built.items, built.composites, built.data.rows
    (2, 18, 36)
    """
    one_of("kind", kind, Content)
    one_of("distractors", distractors, Distractors)
    place = place_of(folder)
    of_source = {"captions": captions, "image_column": image_column, "caption_column": caption_column, "split": split}
    given = _given(kind, source, of_source, place.folder, overwrite)
    shape = {label: maybe_whole(label, value) for label, value in (("rows", rows), ("cols", cols), ("box", box))}
    options = BuildOptions(
        kind="probe",
        source=given.source,
        folder=place.folder,
        name=name,
        images=images,
        items=given.items(items),
        pool=whole_number("pool", pool, 0),
        grid=grid_of(kind, **shape, canvas=whole_number("canvas", canvas), gutter=float(gutter)),
        quality=whole_number("quality", quality),
        background=background,
        seed=whole_number("seed", seed, 0),
        negatives=negatives,
        content=kind,
        distractors=distractors,
        target_sizes=_lengths(target_sizes),
    )
    return replace(run_build(options, whole_number("workers", workers), overwrite, progress), _kept=place.kept)


@checked
def build_similarity(
    source: Images,
    captions: Iterable[str] | str | Path | None = None,
    folder: str | Path | None = None,
    *,
    items: int | None = None,
    seed: int = BuildOptions.seed,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    name: str = SET_NAMES["similarity"],
    images: str = "",
    canvas: int = Grid.canvas,
    box: int | None = None,
    gutter: float = Grid.gutter,
    background: str = BuildOptions.background,
    quality: int = BuildOptions.quality,
    workers: int = 1,
    progress: bool = True,
    overwrite: bool = False,
) -> BuiltSet:
    """Build a similarity set: every image alone on the canvas, in each of nine cells. Arguments as in `build_probe`.

    >>> from PIL import Image
    >>> from transformers_agci import build_similarity
    >>> rings = Image.radial_gradient("L")
    >>> built = build_similarity([rings], ["rings"], canvas=252, box=80, gutter=2, progress=False)
    >>> built.data.rows, built.negatives_file
    (9, None)
    """
    place = place_of(folder)
    of_source = {"captions": captions, "image_column": image_column, "caption_column": caption_column, "split": split}
    given = _given("captions", source, of_source, place.folder, overwrite)
    side = maybe_whole("box", box)
    options = BuildOptions(
        kind="similarity",
        source=given.source,
        folder=place.folder,
        name=name,
        images=images,
        items=given.items(items),
        grid=grid_of("captions", canvas=whole_number("canvas", canvas), box=side, gutter=float(gutter)),
        quality=whole_number("quality", quality),
        background=background,
        seed=whole_number("seed", seed, 0),
        negatives=False,
    )
    return replace(run_build(options, whole_number("workers", workers), overwrite, progress), _kept=place.kept)


def run_build(options: BuildOptions, workers: int, overwrite: bool, progress: bool = True) -> BuiltSet:
    """A set as the command builds it."""
    with ticking("item", progress) as tick:
        made = build(options, workers, overwrite, tick)
    negatives = options.folder / f"{options.name}_negatives.json" if options.has_negatives else None
    done = made.items - made.painted
    given = options.items not in (made.items, BuildOptions.items) and not options.target_sizes
    return BuiltSet(
        made.rows_file,
        negatives,
        options.image_folder,
        made.items,
        made.composites,
        made.dropped,
        done,
        made.sha256,
        options.items if given and made.items < options.items else None,
    )


def keeping(kept: "tempfile.TemporaryDirectory[str]", data: ProbeData) -> ProbeData:
    """The data, whose folder goes when it does."""
    weakref.finalize(data, kept.cleanup)
    return data


class _Given(NamedTuple):
    """A source of images, and how many it has where that is known."""

    source: Source
    number: int | None = None

    def items(self, wanted: int | None) -> int:
        """How many items to build: all of a list, the published number of a source, where nothing is said."""
        return maybe_whole("items", wanted) or self.number or BuildOptions.items


def _given(kind: Content, source: Images | None, of_source: Mapping[str, Any], folder: Path, overwrite: bool) -> _Given:
    """The source: where it lies, or a list as files below `folder`. InputError for what of `of_source` it cannot have.

    `of_source` are captions, image_column, caption_column, split; None: not given.
    """
    given = {name: value for name, value in of_source.items() if value is not None}
    if source is None:
        return _Given(needed_source(kind, None, list(given)))
    captions = given.pop("captions", None)
    if isinstance(source, str | Path):
        if captions is not None and not isinstance(captions, str | Path):
            raise InputError(
                "A list of `captions` goes with a list of images; a source has its own, or a file of them."
            )
        where = Source(str(source), None if captions is None else str(captions), **given)
        return _Given(needed_source(kind, where))
    if given:
        raise InputError(f"`{next(iter(given))}` is of a source of captioned images; omit it with a list of images.")
    images = elements("source", source, IMAGES)
    needed_source(kind, Source(""))  # before the images are written
    return _Given(Source(str(written_source(folder / "source", images, captions, overwrite))), len(images))


def _lengths(given: Any) -> tuple[int, ...]:
    return tuple(whole_number("target_sizes", size) for size in elements("target_sizes", given, "lengths in pixels"))
