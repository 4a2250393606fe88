"""A benchmark in Python: asked at every lambda, scored, compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.models import Model, answering
from transformers_agci.api.rows import Tabular, rows_of_files, tables_html
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import benchmark as declared_benchmark
from transformers_agci.experiments.benchmarks.asking.run import AskOptions, ask_benchmark
from transformers_agci.experiments.benchmarks.asking.source import Source
from transformers_agci.experiments.benchmarks.score_report import Bootstrap
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.runner import RunOptions
from transformers_agci.report.table import Table
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.result_names import sibling_path

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class BenchmarkScore:
    """The figures of one lambda, as its score file has them: fractions, or percent where a name ends in _pct."""

    name: str
    lam: float | str
    figures: dict[str, Any]

    def _repr_html_(self) -> str:
        rows = [[name, _number(value)] for name, value in self.figures.items() if not isinstance(value, dict | list)]
        return tables_html([Table(f"{self.name}, lambda {self.lam}", ["figure", "value"], rows)])


@dataclass(frozen=True)
class BenchmarkRun(Tabular):
    """A benchmark that was asked: a result file and a score per lambda."""

    exit_code: int
    log: tuple[str, ...]
    name: str
    lambdas: tuple[float, ...]
    files: tuple[Path, ...]
    _kept: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def scores(self) -> list[BenchmarkScore]:
        """One per lambda; the later ones hold the paired difference to the first. InputError where none was made."""
        paths = [sibling_path(path, ".score.json") for path in self.files]
        if not all(path.exists() for path in paths):
            reason = next((line for line in self.log if line.startswith("no score")), "no score was made")
            raise InputError(f"{self.name}: {reason}")
        found = [read_json_object(path) for path in paths]
        return [BenchmarkScore(self.name, figures["lambda"], figures) for figures in found]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All answers with their lambda."""
        return rows_of_files(self.lambdas, self.files)

    def _repr_html_(self) -> str:
        return "".join(score._repr_html_() for score in self.scores)


def benchmark(
    name: str,
    model: Model = EMBEDDED,
    data: str | Path | None = None,
    lambdas: Sequence[float] | None = None,
    *,
    hub_id: str | None = None,
    image_root: str | Path | None = None,
    annotations: str | Path | None = None,
    protocol: str | None = None,
    mode: str = "direct",
    setting: str | None = None,
    limit: int | None = None,
    resamples: int = 2000,
    folder: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **answers: Any,
) -> BenchmarkRun:
    """Ask one of the six benchmarks at every lambda and score the answers.

    `data` is the question file or folder that eval/<Benchmark>/README.md describes. `answers` are further options of
    AnswerOptions: method, batch_size, workers, scope.
    """
    place, lines = place_of(folder), list[str]()
    paths = [None if each is None else Path(each) for each in (data, image_root, annotations)]
    source = Source(
        declared_benchmark(name), paths[0], hub_id, paths[1], protocol, mode=mode, setting=setting, limit=limit
    )
    run = RunOptions(None, overwrite, False, progress)
    given = tuple(float(lam) for lam in lambdas or ())
    asking = AskOptions(given, AnswerOptions(run=run, **answers), Bootstrap(resamples))
    with answering(model) as engine:
        asked = ask_benchmark(
            source, place.folder / f"{name}.jsonl", asking, lambda: engine, quiet(lines), annotations=paths[2]
        )
    return BenchmarkRun(asked.exit_code, tuple(lines), name, tuple(asked.lambdas), tuple(asked.outputs), place.kept)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
