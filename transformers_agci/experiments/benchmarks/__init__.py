"""The benchmarks: every file of this folder that declares a `BENCHMARK`. No torch, no inference.

A new one needs its file here, named after it, and a test.

>>> benchmark_names()
('crpe', 'hallusionbench', 'mmmu_pro', 'pope', 'scienceqa', 'textvqa')
"""

import contextlib
import difflib
import importlib
from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Score
from transformers_agci.experiments.benchmarks.joining import read_scored

ROWS_LOOKED_AT = 50


def benchmark_names() -> tuple[str, ...]:
    """The names, found without importing a declaration: what a command's help shows."""
    files = [file for folder in __path__ for file in sorted(Path(folder).glob("*.py"))]
    return tuple(file.stem for file in files if "\nBENCHMARK = " in file.read_text(encoding="utf-8"))


def all_benchmarks() -> dict[str, Benchmark]:
    """name -> declaration."""
    return {name: importlib.import_module(f"{__name__}.{name}").BENCHMARK for name in benchmark_names()}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; InputError lists the names there are."""
    known = benchmark_names()
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f" Did you mean: {near[0]}?" if near else ""
        raise InputError(f"Unknown benchmark '{name}'.{hint} Available: {', '.join(known)}.")
    return all_benchmarks()[name]


def score_answers(declared: Benchmark, inputs: Inputs) -> Score:
    """The score of the answers; where a file seems to belong to another benchmark, the error says so."""
    try:
        return declared.scoring.score(inputs)
    except InputError as error:
        raise InputError(f"{error}{_hints(declared, (*inputs.answers, *inputs.questions))}") from None


def _hints(declared: Benchmark, paths: tuple[Path, ...]) -> str:
    likely = {path: _likely(path) for path in paths}
    return "".join(
        f" {path.name} looks like a file of {' or '.join(b.title for b in found)}, not of {declared.title}."
        for path, found in likely.items()
        if found and declared not in found
    )


def _likely(path: Path) -> list[Benchmark]:
    """The benchmarks that most of a file's first rows look like."""
    rows = []
    with contextlib.suppress(InputError):
        rows = [sourced.row for sourced in read_scored(path)[:ROWS_LOOKED_AT] if sourced.row]
    return [b for b in all_benchmarks().values() if rows and 2 * sum(map(b.rows.looks_like, rows)) > len(rows)]
