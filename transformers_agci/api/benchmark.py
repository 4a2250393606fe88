"""A benchmark in Python: asked at every lambda, scored, compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, maybe_lambdas, maybe_whole, whole_number, with_options
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.models import Model, answering
from transformers_agci.api.rows import Displayed, Tabular, rows_of_files, tables_html
from transformers_agci.data.rows import require
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import benchmark as declared_benchmark
from transformers_agci.experiments.benchmarks.asking.run import AskOptions, ask_benchmark
from transformers_agci.experiments.benchmarks.asking.source import Source
from transformers_agci.experiments.benchmarks.score_report import Bootstrap, flat_figures
from transformers_agci.experiments.defaults import RESAMPLES
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions
from transformers_agci.report.table import Table
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.result_names import sibling_path


@dataclass(frozen=True, eq=False, repr=False)
class BenchmarkScore(Displayed):
    """The figures of one lambda, as its score file has them: fractions, or percent where a name ends in _pct."""

    name: str
    lam: float | str
    figures: dict[str, Any]

    @property
    def table(self) -> Table:
        """A row per figure."""
        rows = [[name, _number(value)] for name, value in flat_figures(self.figures).items()]
        return Table(f"{self.name}, lambda {self.lam}", ["figure", "value"], rows)

    @property
    def text(self) -> str:
        """The figures as text."""
        return self.table.text

    def _repr_html_(self) -> str:
        return tables_html([self.table])


@dataclass(frozen=True, eq=False)
class BenchmarkRun(Tabular):
    """A benchmark that was asked: a result file and a score per lambda."""

    exit_code: int
    log: tuple[str, ...]
    name: str
    lambdas: tuple[float, ...]
    files: tuple[Path, ...]
    complete: bool = True
    _kept: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def scores(self) -> list[BenchmarkScore]:
        """One per lambda; the later ones hold the paired difference to the first. InputError where none was made."""
        paths = [sibling_path(path, ".score.json") for path in self.files]
        if not all(path.exists() for path in paths):
            reason = next((line for line in self.log if line.startswith("no score")), "no score was made")
            raise InputError(f"{self.name}: {reason}")
        found = [(path, read_json_object(path)) for path in paths]
        return [BenchmarkScore(self.name, require(figures, "lambda", str(path)), figures) for path, figures in found]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All answers with their lambda."""
        return rows_of_files(self.lambdas, self.files)

    def _repr_html_(self) -> str:
        return "".join(score._repr_html_() for score in self.scores)


@checked
def benchmark(
    name: str,
    model: Model = EMBEDDED,
    data: str | Path | None = None,
    lambdas: Sequence[float] | float | None = None,
    *,
    hub_id: str | None = None,
    image_root: str | Path | None = None,
    annotations: str | Path | None = None,
    protocol: str | None = None,
    mode: str = "direct",
    setting: str | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    method: str = "agci",
    method_options: Mapping[str, Any] | None = None,
    scope: str = "image",
    batch_size: int | None = None,
    workers: int | None = None,
    resamples: int = RESAMPLES,
    folder: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
    strict: bool = False,
) -> BenchmarkRun:
    """Ask one of the six benchmarks at every lambda and score the answers.

    `data` is the question file or folder that eval/<Benchmark>/README.md describes. `resamples` of the bootstrap make
    the scores' intervals; 0: none. The rest is as in `probe`.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from transformers_agci import benchmark
    >>> folder = tempfile.TemporaryDirectory()
    >>> questions = Path(folder.name, "pope.jsonl")
    >>> Image.new("RGB", (112, 112), "red").save(questions.with_name("red.jpg"))
    >>> row = {"question_id": "1", "image": "red.jpg", "image_source": "1", "category": "random", "answer": "no"}
    >>> _ = questions.write_text(json.dumps({**row, "question": "Is there a cat in the image?"}))
    >>> run = benchmark("pope", data=questions, lambdas=[0, 0.5], resamples=0, progress=False)
    >>> run.to_pandas()[["lambda", "question_id"]].shape
    (2, 2)
    """
    place, lines = place_of(folder), list[str]()
    paths = [None if each is None else Path(each) for each in (data, image_root, annotations)]
    source = Source(
        declared_benchmark(name),
        paths[0],
        hub_id,
        paths[1],
        protocol,
        mode=mode,
        setting=setting,
        limit=maybe_whole("limit", limit),
        max_new_tokens=maybe_whole("max_new_tokens", max_new_tokens),
        prompt=prompt,
        annotations=paths[2],
    )
    method, own_options = with_options(method, method_options)
    answers = AnswerOptions(
        maybe_whole("batch_size", batch_size),
        workers=maybe_whole("workers", workers, least=0),
        method=method,
        scope=scope,
        run=RunOptions(None, overwrite, strict, progress),
        method_options=own_options,
    )
    asking = AskOptions(maybe_lambdas(lambdas), answers, Bootstrap(whole_number("resamples", resamples, least=0)))
    with answering(model) as engine:
        output = place.folder / f"{name}.jsonl"
        found = run_benchmark(source, output, asking, lambda: engine, quiet(lines))
    return replace(found, log=tuple(lines), _kept=place.kept)


def run_benchmark(
    source: Source, answer_file: Path, options: AskOptions, load: Callable[[], Engine | LoadedModel], say: Say
) -> BenchmarkRun:
    """A benchmark as the command runs it; `say` takes what a user reads while it goes on."""
    asked = ask_benchmark(source, answer_file, options, load, say)
    lambdas, files = tuple(asked.lambdas), tuple(asked.outputs)
    return BenchmarkRun(asked.exit_code, (), source.benchmark.name, lambdas, files, asked.complete)


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_number, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
