"""The rows of a run: a file with its images, the embedded atlas, the published sets, or images of your own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, elements, maybe_whole, one_of, whole_number
from transformers_agci.api.build import build_probe, keeping
from transformers_agci.api.folders import place_of
from transformers_agci.api.images import IMAGES
from transformers_agci.data.built_set import SetKind
from transformers_agci.data.fetch import MAX_RATIO, arrange, copy_or_download
from transformers_agci.data.grid import Grid, largest_box
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import FIRST_LOOK_ITEMS
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data

NEGATIVES = "_negatives"  # ends the name of a file of rows whose right answer is No


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
    return data if place.kept is None else keeping(place.kept, data)


@checked
def published_data(
    kind: SetKind = "probe",
    folder: str | Path | None = None,
    items: int | None = None,
    *,
    max_unpack_ratio: int = MAX_RATIO,
) -> ProbeData:
    """The published probe or similarity set: the copy in `folder`, or from the hub into it where there is none yet.

    Archives are unpacked there; one that unpacks to more than `max_unpack_ratio` times its size is refused. A download
    that broke off goes on. Without a `folder` it goes where `agci data fetch` puts it, into probe_datasets/ or
    similarity_data/ of the current folder. Rows whose answer is No are read from <name>_negatives beside <name>. A set
    in the published format is found in `folder` just so:

    >>> from transformers_agci import probe_data, published_data
    >>> built = probe_data(items=1)
    >>> published_data("probe", built.img_path.parent).rows
    18
    """
    one_of("kind", kind, SetKind)
    items, ratio = maybe_whole("items", items), whole_number("max_unpack_ratio", max_unpack_ratio)
    found = arrange(copy_or_download(kind, None if folder is None else Path(folder)), ratio)
    by_name = {each.rows.stem: each for each in found}
    first = next((each for name, each in by_name.items() if not name.endswith(NEGATIVES)), found[0])
    negatives = by_name.get(f"{first.rows.stem}{NEGATIVES}")
    return read_data(first.rows, first.images, negatives.rows if negatives else None, items)


@checked
def composites(
    images: Iterable[Any] | str | Path,
    captions: Iterable[str] | None = None,
    folder: str | Path | None = None,
    *,
    items: int | None = None,
    canvas: int = Grid.canvas,
    rows: int = Grid.rows,
    cols: int = Grid.cols,
    seed: int = 0,
    progress: bool = True,
    overwrite: bool = False,
) -> ProbeData:
    """A probe set of your own images: each is the target in every cell of a grid, among others of them.

    `images` are files, PIL images or encoded bytes with one of `captions` each, or a source of captioned images that
    `agci data build-probe` reads (a folder, parquet or tar files, a hub id). At least one image more than the grid has
    cells is needed: eight to stand beside the target, one whose caption is asked for the No rows. The set is written to
    `folder`, and found there again by the same call; without one it lives as long as what is returned. `build_probe`
    has the further choices: other contents, target sizes, look-alike distractors.

    >>> from PIL import Image
    >>> from transformers_agci import composites
    >>> shades = [Image.radial_gradient("L").point(lambda value, n=n: (value * n) % 256) for n in range(1, 12)]
    >>> captions = [f"rings, {number} of them" for number in range(1, 12)]
    >>> data = composites(shades, captions, canvas=252, items=2, progress=False)
    >>> data.rows
    36
    """
    if isinstance(images, str | Path) and captions is not None:
        raise InputError("`captions` go with a list of images; a source has its own.")
    source = images if isinstance(images, str | Path) else elements("images", images, IMAGES)
    canvas, rows, cols = (whole_number(*each) for each in (("canvas", canvas), ("rows", rows), ("cols", cols)))
    gutter = Grid.gutter * canvas / Grid.canvas
    as_published = min(round(Grid.box * canvas / Grid.canvas), largest_box(canvas, gutter, max(rows, cols)))
    return build_probe(
        source,
        captions,
        folder,
        rows=rows,
        cols=cols,
        items=items,
        seed=seed,
        name="probe",
        canvas=canvas,
        box=as_published if (rows, cols) == (Grid.rows, Grid.cols) else None,
        gutter=gutter,
        progress=progress,
        overwrite=overwrite,
    ).data
