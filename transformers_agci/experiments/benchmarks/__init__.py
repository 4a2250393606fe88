"""The benchmarks: every file of this folder that declares a `BENCHMARK`. No torch, no inference.

A new one needs its file here and a test.

>>> sorted(all_benchmarks())
['crpe', 'hallusionbench', 'mmmu_pro', 'pope', 'scienceqa', 'textvqa']
"""

import contextlib
import difflib
import importlib
import pkgutil
from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Score
from transformers_agci.experiments.benchmarks.joining import read_scored

ROWS_LOOKED_AT = 50


def all_benchmarks() -> dict[str, Benchmark]:
    """name -> declaration."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {m.BENCHMARK.name: m.BENCHMARK for m in modules if hasattr(m, "BENCHMARK")}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; InputError lists the names there are."""
    known = all_benchmarks()
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f" Did you mean: {near[0]}?" if near else ""
        raise InputError(f"Unknown benchmark '{name}'.{hint} Available: {', '.join(sorted(known))}.")
    return known[name]


def score_answers(declared: Benchmark, inputs: Inputs) -> Score:
    """The score of the answers; where a file seems to belong to another benchmark, the error says so."""
    try:
        return declared.score(inputs)
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
    return [b for b in all_benchmarks().values() if rows and 2 * sum(map(b.looks_like, rows)) > len(rows)]
