"""Five benchmarks in one go, the model loaded once; one whose files are absent is named and skipped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import benchmark
from transformers_agci.experiments.benchmarks.asking.run import AskOptions, ask_benchmark
from transformers_agci.experiments.benchmarks.asking.source import Source
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.progress import Say

NAMES = ("scienceqa", "hallusionbench", "crpe", "textvqa", "pope")
DATA_FILES = ("*.json", "*.jsonl", "*.gz", "*.parquet", "data/*.parquet", "Full/*.parquet")


@dataclass(frozen=True)
class Files:
    """A benchmark's own files, where they are not in its folder below the data root."""

    data: Path | None = None
    images: Path | None = None
    answers: Path | None = None  # default: results_downstream/<name>_answers.json
    annotations: Path | None = None


@dataclass(frozen=True)
class DownstreamOptions:
    """The model, how all benchmarks are asked, and where each one's files are."""

    model: LoadOptions
    asking: AskOptions
    protocol: str = "paper"
    limit: int | None = None
    max_new_tokens: int | None = None  # default: the protocol's
    data_root: Path | None = None
    files: Mapping[str, Files] = field(default_factory=dict)


def ask_all(options: DownstreamOptions, say: Say) -> int:
    """Ask and score every benchmark whose files are there; 1 where rows were bad or a benchmark's files are wrong.

    Raises InputError where there is no benchmark at all, and with `strict` at the first mistake in a file.
    """
    sources = {name: _source(name, options) for name in NAMES}
    for name, source in sources.items():
        if source is None:
            place = _data_of(name, options) or f"no `eval_file_path_{name}`, no `data_root`"
            say(f"{name}: skipped, its files are absent ({place}).")
    there = {name: source for name, source in sources.items() if source is not None}
    if not there:
        raise InputError("There is no benchmark to run: give `data_root` or the question file of a benchmark.")
    loaded = load(options.model, weights=not options.asking.dry_run)
    codes = [_ask(source, options, loaded, say) for source in there.values()]
    say(f"\n{len(there)} of {len(NAMES)} benchmarks asked ({', '.join(there)}), {len(NAMES) - len(there)} skipped.")
    return max(codes)


def _ask(source: Source, options: DownstreamOptions, loaded: LoadedModel, say: Say) -> int:
    """One benchmark from its rows to its score; a mistake in its files does not stop the others."""
    name = source.benchmark.name
    answers = options.files.get(name, Files()).answers or Path("results_downstream") / f"{name}_answers.json"
    say(f"\n== {source.benchmark.title}")
    try:
        return ask_benchmark(source, answers, options.asking, lambda: loaded, say).exit_code
    except InputError as error:
        if options.asking.answers.run.strict:
            raise
        say(f"{name}: {error}")
        return 1


def _source(name: str, options: DownstreamOptions) -> Source | None:
    """What to ask; None where the benchmark's files are absent."""
    path, files = _data_of(name, options), options.files.get(name, Files())
    if path is None or not path.exists() or (path.is_dir() and not any(map(list, map(path.glob, DATA_FILES)))):
        return None
    return Source(
        benchmark(name),
        path,
        image_root=files.images,
        protocol=options.protocol,
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        annotations=files.annotations,
    )


def _data_of(name: str, options: DownstreamOptions) -> Path | None:
    given = options.files.get(name, Files()).data
    if given is not None:
        return given
    return options.data_root / benchmark(name).data_folder if options.data_root is not None else None
