"""Occlusion in Python: which places of an image the answer depends on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.api.arguments import (
    checked,
    maybe_whole,
    needed_data,
    place_of_lambda,
    some_lambdas,
    whole_number,
)
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.models import Model, looking_inside
from transformers_agci.api.rows import Displayed, Tabular, lambda_of_file, rows_of_files, tables_html
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import DRAW_SEED, DRAWN_ITEMS, OCCLUSION_TOKENS
from transformers_agci.experiments.occlusion.files import ImageMap, listed, read_folder
from transformers_agci.experiments.occlusion.maps import OcclusionMaps, aggregate, maps_table, panel_figure
from transformers_agci.experiments.occlusion.masks import MASK, parse_colour
from transformers_agci.experiments.occlusion.measure import OcclusionOptions, occlude_rows
from transformers_agci.experiments.occlusion.occlude import RESULTS, MaskOptions
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.positives import RowsOptions
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions
from transformers_agci.method.lam import lambda_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class OcclusionStatistics(Displayed, OcclusionMaps):
    """Mean maps by the target's place, and the share of each on the target. Shows itself as a table."""

    def _repr_html_(self) -> str:
        return tables_html([maps_table(self)])

    @property
    def text(self) -> str:
        """The same as text."""
        return maps_table(self).text


@dataclass(frozen=True, eq=False)
class OcclusionRun(Tabular):
    """Occlusion maps that were made: a results folder per lambda."""

    exit_code: int
    log: tuple[str, ...]
    lambdas: tuple[float, ...]
    folders: tuple[Path, ...]
    _kept: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row per image and lambda: the input row, the answer, how far the answer's logits moved at most."""
        return rows_of_files(self.lambdas, [folder / RESULTS for folder in self.folders])

    @checked
    def maps(self, lam: float | None = None) -> list[ImageMap]:
        """The map of each image, 0..1 in its raster, at one lambda (the first where none is named)."""
        folder = self._folder(lam)
        if self.exit_code and not (folder / RESULTS).stat().st_size:
            skipped = [line.strip() for line in self.log if line.startswith("  ")]
            raise InputError(f"This run made no map, every image was skipped: {' '.join(skipped[:1])}")
        return read_folder(folder).maps

    @checked
    def statistics(self, lam: float | None = None) -> OcclusionStatistics:
        """The mean maps by the target's place."""
        return OcclusionStatistics(**vars(aggregate(self.maps(lam))))

    @checked
    def figure(self, lam: float | None = None, title: str = "") -> "Figure":
        """Nine mean maps, one per place of the target."""
        return panel_figure(self.statistics(lam), title)

    def _repr_html_(self) -> str:
        return "".join(self.statistics(lam)._repr_html_() for lam in self.lambdas)

    def _folder(self, lam: float | None) -> Path:
        return self.folders[place_of_lambda(self.lambdas, lam)]


@checked
def occlusion(
    model: Model = EMBEDDED,
    data: ProbeData | None = None,
    lambdas: Sequence[float] | float = (0.0,),
    *,
    items: int = DRAWN_ITEMS,
    seed: int = DRAW_SEED,
    mask_size: int = MASK,
    stride: int | None = None,
    colour: str = "white",
    max_new_tokens: int = OCCLUSION_TOKENS,
    folder: str | Path | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> OcclusionRun:
    """Hide one place of an image after another and see how far the answer's logits move.

    `items` items are drawn from `data` with `seed` (None: made from the embedded atlas), nine images each. With a
    `folder` each image's map stays there and an interrupted call goes on with the next image.

    >>> from transformers_agci import occlusion, probe_data
    >>> run = occlusion(data=probe_data(items=1, limit=1), mask_size=84, progress=False)
    >>> run.maps()[0].values.shape
    (3, 3)
    """
    place, lines = place_of(folder), list[str]()
    wanted = some_lambdas(lambdas)
    folders = tuple(place.folder / (f"lam{lambda_text(lam)}" if len(wanted) > 1 else "maps") for lam in wanted)
    side = whole_number("mask_size", mask_size)
    masks = MaskOptions(side, side if stride is None else whole_number("stride", stride), parse_colour(colour))
    rows = RowsOptions(None, None, whole_number("items", items), whole_number("seed", seed, 0), needed_data(data))
    run = RunOptions(None, overwrite, False, progress)
    size, longest = maybe_whole("batch_size", batch_size), whole_number("max_new_tokens", max_new_tokens)
    codes = []
    with looking_inside(model, "occlusion") as loaded:
        for lam, output in zip(wanted, folders, strict=True):
            options = OcclusionOptions(loaded, masks, lam, size, longest)
            codes.append(run_occlusion(options, rows, output, run, quiet(lines)).exit_code)
    return OcclusionRun(max(codes), tuple(lines), wanted, folders, place.kept)


@checked
def read_occlusion(folder: str | Path) -> OcclusionRun:
    """A results folder that is there already, as `agci occlusion-maps` takes it; `exit_code` 1: images are unfinished.

    >>> from transformers_agci import occlusion, probe_data, read_occlusion
    >>> run = occlusion(data=probe_data(items=1, limit=1), mask_size=84, progress=False)
    >>> len(read_occlusion(run.folders[0]).maps())
    1
    """
    path = Path(folder)
    left = read_folder(path).unfinished
    said = (f"{counted(len(left), 'unfinished image')} omitted: {listed(left)}",) if left else ()
    return OcclusionRun(1 if left else 0, said, (lambda_of_file(path / RESULTS),), (path,))


def run_occlusion(
    options: OcclusionOptions, rows: RowsOptions, folder: Path, run: RunOptions, say: Say
) -> OcclusionRun:
    """Occlusion at one lambda, as the command runs it; `say` takes what a user reads while it goes on."""
    return OcclusionRun(occlude_rows(options, rows, folder, run, say), (), (options.lam,), (folder,))
