"""The rows of a run: a file with its images, the embedded atlas, the published sets, or images of your own."""

import io
import json
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, maybe_whole, whole_number
from transformers_agci.api.folders import place_of
from transformers_agci.data.build import build
from transformers_agci.data.built_set import BuildOptions
from transformers_agci.data.fetch import arrange, download
from transformers_agci.data.grid import Grid, largest_box
from transformers_agci.data.sources import Source
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.defaults import FIRST_LOOK_ITEMS
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data

NOT_IN_PNG = ("CMYK", "F", "HSV", "LAB", "YCbCr")  # modes of PIL


@checked
def probe_data(
    rows: str | Path | None = None,
    images: str | Path | None = None,
    *,
    negatives: str | Path | None = None,
    items: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> ProbeData:
    """Rows of a probe file with the folder of their images, or composites of the embedded atlas.

    `negatives` are rows whose right answer is No, on the same images; of the atlas both kinds are made, and written to
    `folder`/probe_set: name one where results are kept, since a report shows their images; without one they go with
    what is returned. At most `items` items and `limit` rows. Rows that cannot be read are named by the run; a missing
    file is an InputError.

    >>> from transformers_agci import probe_data
    >>> data = probe_data(items=2)
    >>> data.rows, data.source
    (36, 'the embedded atlas')
    """
    items, limit = maybe_whole("items", items), maybe_whole("limit", limit)
    if rows is not None:
        if images is None:
            raise InputError("`images` is needed with `rows`: the folder that holds the rows' images.")
        if folder is not None:
            raise InputError(
                "`folder` is where composites of the embedded atlas are written; `rows` have their images."
            )
        return read_data(Path(rows), Path(images), Path(negatives) if negatives else None, items, limit)
    if images is not None or negatives is not None:
        raise InputError("`images` and `negatives` belong to `rows`; without it the embedded atlas makes both.")
    place = place_of(folder)
    data = embedded_data(place.folder / "probe_set", items or FIRST_LOOK_ITEMS, whole_number("seed", seed, 0), limit)
    return data if place.kept is None else _keeping(place.kept, data)


@checked
def published_data(kind: str = "probe", folder: str | Path | None = None, items: int | None = None) -> ProbeData:
    """The published probe or similarity set: the copy in `folder`, or from the hub where there is none yet.

    A set in the published format is found in `folder` just so:

    >>> from transformers_agci import probe_data, published_data
    >>> built = probe_data(items=1)
    >>> published_data("probe", built.img_path.parent).rows
    9
    """
    if kind not in ("probe", "similarity"):
        raise InputError(f"`kind` must be probe or similarity, but is {kind!r}.")
    items = maybe_whole("items", items)
    place = Path(folder) if folder is not None else Path(f"{kind}_data")
    found = arrange(place if place.is_dir() else download(kind, place))
    return read_data(found[0].rows, found[0].images, items=items)


@checked
def composites(
    images: Sequence[Any] | str | Path,
    captions: Sequence[str] | None = None,
    folder: str | Path | None = None,
    *,
    items: int | None = None,
    canvas: int = Grid.canvas,
    rows: int = Grid.rows,
    cols: int = Grid.cols,
    seed: int = 0,
) -> ProbeData:
    """A probe set of your own images: each is the target in every cell of a grid, among others of them.

    `images` are files, PIL images or encoded bytes with one of `captions` each, or a source of captioned images that
    `agci data build-probe` reads (a folder, parquet or tar files, a hub id). At least one image more than the grid has
    cells is needed: eight to stand beside the target, one whose caption is asked for the No rows. The set is written to
    `folder`, and found there again by the same call; without one it lives as long as what is returned.

    >>> from PIL import Image
    >>> from transformers_agci import composites
    >>> shades = [Image.radial_gradient("L").point(lambda value, n=n: (value * n) % 256) for n in range(1, 12)]
    >>> data = composites(shades, [f"rings, {number} of them" for number in range(1, 12)], canvas=252, items=2)
    >>> data.rows
    36
    """
    items, canvas = maybe_whole("items", items), whole_number("canvas", canvas)
    place, kept = place_of(folder)
    source = images if isinstance(images, str | Path) else _written(place / "source", images, captions)
    if isinstance(images, str | Path) and captions is not None:
        raise InputError("`captions` go with a list of images; a source has its own.")
    gutter = Grid.gutter * canvas / Grid.canvas
    most = largest_box(canvas, gutter, max(rows, cols))
    box = min(round(270 * canvas / 840), most) if (rows, cols) == (3, 3) else most
    options = BuildOptions(
        kind="probe",
        source=Source(str(source)),
        folder=place,
        name="probe",
        items=items or (10_000 if isinstance(images, str | Path) else len(images)),
        grid=Grid.centred(canvas, box, gutter, rows, cols),
        seed=seed,
    )
    build(options)
    data = read_data(place / "probe.json", place / "probe_images", place / "probe_negatives.json")
    return data if kept is None else _keeping(kept, data)


def _written(folder: Path, images: Sequence[Any], captions: Sequence[str] | None) -> Path:
    """The images as files with their captions beside them, in the form of datasets' image folders."""
    if not isinstance(images, Sequence) or isinstance(images, bytes):
        raise InputError(f"`images` must be a list of images, or a source of them, but is {short(images)}.")
    if isinstance(captions, str):
        raise InputError(f"`captions` must be a list of texts, one for each image, but is {short(captions)}.")
    if captions is None or len(captions) != len(images):
        given = "none" if captions is None else f"{len(captions)}"
        raise InputError(f"There must be a caption for each of the {len(images)} images, but there are {given}.")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        name = f"{number:06d}"
        folder.joinpath(name).write_bytes(encoded(image, f"Image {number}"))
        lines.append(json.dumps({"file_name": name, "caption": caption}))
    folder.joinpath("metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def encoded(image: Any, where: str) -> bytes:
    """The bytes of an image: of a file, a PIL image or encoded bytes; `where` begins the InputError of another."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InputError(f"{where}: {image} cannot be read ({error.strerror}).") from None
    if hasattr(image, "save"):
        file = io.BytesIO()
        as_png = image.convert("RGB") if image.mode in NOT_IN_PNG else image
        as_png.save(file, "PNG")
        return file.getvalue()
    raise InputError(f"{where} must be a file, a PIL image or encoded bytes, but is a {type(image).__name__}.")


def _keeping(kept: "tempfile.TemporaryDirectory[str]", data: ProbeData) -> ProbeData:
    """The data, whose folder goes when it does."""
    weakref.finalize(data, kept.cleanup)
    return data
