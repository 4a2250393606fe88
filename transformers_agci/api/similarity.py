"""Similarity in Python: how well the vision encoder understands an image in each place."""

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
from transformers_agci.data.grid import POSITIONS
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import DRAWS, FIRST_LOOK_ITEMS, POOLING
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.positives import RowsOptions
from transformers_agci.experiments.similarity.measure import SimilarityOptions, measure_rows
from transformers_agci.experiments.similarity.report import (
    COSINE,
    COSINE_CHANGE,
    SimilarityReport,
    measure,
    read_similarities,
    similarity_figure,
    write_json,
)
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityStatistics(Displayed, SimilarityReport):
    """Cosines overall and by position. Shows itself as a table."""

    @property
    def tables(self) -> list[Table]:
        """One row per position."""
        rows = [
            [name, COSINE.write(cell), COSINE_CHANGE.write(effect), str(cell.n)]
            for name, cell, effect in zip(POSITIONS, self.cells, self.effects, strict=True)
        ]
        title = f"similarity {COSINE.write(self.overall)}, {counted(self.items, 'item')}; 95 % intervals over items"
        return [Table(title, ["position", "similarity", "from the item's mean", "n"], rows)]

    def _repr_html_(self) -> str:
        return tables_html(self.tables)

    @property
    def text(self) -> str:
        """The same as text."""
        return "\n\n".join(table.text for table in self.tables)

    @checked
    def write_json(self, path: str | Path) -> None:
        """All numbers to a file."""
        write_json(self, path)


@dataclass(frozen=True, eq=False)
class SimilarityRun(Tabular):
    """Similarities that were measured: a result file per lambda."""

    exit_code: int
    log: tuple[str, ...]
    lambdas: tuple[float, ...]
    files: tuple[Path, ...]
    _kept: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All result rows with their lambda."""
        return rows_of_files(self.lambdas, self.files)

    @checked
    def statistics(self, lam: float | None = None, draws: int = DRAWS, seed: int = 0) -> SimilarityStatistics:
        """The numbers at one lambda, the first where none is named."""
        table = read_similarities(self.files[place_of_lambda(self.lambdas, lam)])
        return SimilarityStatistics(**vars(measure(table, whole_number("draws", draws), whole_number("seed", seed, 0))))

    @checked
    def figure(self, lam: float | None = None, title: str = "") -> "Figure":
        """Two maps: on the whole range, and the differences between positions on their own scale."""
        return similarity_figure(self.statistics(lam), title)

    def _repr_html_(self) -> str:
        return "".join(self.statistics(lam)._repr_html_() for lam in self.lambdas)


@checked
def similarity(
    model: Model = EMBEDDED,
    data: ProbeData | None = None,
    lambdas: Sequence[float] | float = (0.0,),
    *,
    pooling: str = POOLING,
    items: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> SimilarityRun:
    """Cosine between the pooled caption and the pooled image tokens, for every row of a similarity set.

    Without `data` `items` items (20) of the embedded atlas are shown alone on the canvas. Above lambda 0 the image
    tokens are pooled after AGCI. Negatives are omitted.

    >>> from transformers_agci import similarity
    >>> run = similarity(items=2, progress=False)
    >>> run.to_pandas().shape[0], run.statistics().items
    (18, 2)
    """
    place, lines = place_of(folder), list[str]()
    wanted = some_lambdas(lambdas)
    files = output_paths(place.folder / "similarity.jsonl", wanted)
    count = FIRST_LOOK_ITEMS if items is None else whole_number("items", items)
    if data is not None and items is not None:
        raise InputError("`items` is for the embedded atlas; give probe_data(..., items=...) with rows of your own.")
    rows = RowsOptions(None, None, count, whole_number("seed", seed, 0), needed_data(data))
    run = RunOptions(None, overwrite, False, progress)
    size = maybe_whole("batch_size", batch_size)
    codes = []
    with looking_inside(model, "similarity") as loaded:
        for lam, path in zip(wanted, files, strict=True):
            options = SimilarityOptions(loaded, pooling, lam, None, size)
            codes.append(run_similarity(options, rows, path, run, quiet(lines)).exit_code)
    return SimilarityRun(max(codes), tuple(lines), wanted, tuple(files), place.kept)


@checked
def read_similarity(file: str | Path) -> SimilarityRun:
    """A result file that is there already, as `agci metrics-similarity` takes it; its lambda is NaN if nothing says it.

    >>> from transformers_agci import read_similarity, similarity
    >>> run = similarity(items=2, progress=False)
    >>> read_similarity(run.files[0]).statistics(draws=10).overall == run.statistics(draws=10).overall
    True
    """
    path = Path(file)
    read_similarities(path)  # what is no result fails here, not where its numbers are asked for
    return SimilarityRun(0, (), (lambda_of_file(path),), (path,))


def run_similarity(
    options: SimilarityOptions, rows: RowsOptions, answer_file: Path, run: RunOptions, say: Say
) -> SimilarityRun:
    """Similarity at one lambda, as the command runs it; `say` takes what a user reads while it goes on."""
    return SimilarityRun(measure_rows(options, rows, answer_file, run, say), (), (options.lam,), (answer_file,))
