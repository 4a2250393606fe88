"""MMMU-Pro's answers in the published form, and under the names that MMMU's own evaluate.py reads."""

from pathlib import Path
from typing import Any

from transformers_agci.data.rows import read_rows
from transformers_agci.experiments.benchmarks import mmmu_pro
from transformers_agci.experiments.benchmarks.asking.run import AskOptions, BenchmarkAnswers, ask_benchmark
from transformers_agci.experiments.benchmarks.asking.source import Source
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.progress import Say
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage.atomic import write_output
from transformers_agci.storage.json_file import json_bytes

OFFICIAL_NAMES = {
    "standard (10 options)": "-10opt_standard",
    "standard (4 options)": "-4opt_standard",
    "vision": "_vision",
}


def ask_mmmu_pro(model: LoadOptions, source: Source, options: AskOptions, root: Path, say: Say) -> int:
    """Ask MMMU-Pro and write three files per lambda below `root`; 1 where rows were bad or could not be scored.

    output/<dataset>/<model>_<variant>_<mode>.jsonl   the rows without images, with `response`
    output/<dataset>/runs/...                         the engine's file and its figures
    official/<model>-10opt_standard_direct.jsonl      the same rows for evaluate.py, of a complete run only
    """
    name = Path(model.model).resolve().name if Path(model.model).exists() else model.model.split("/")[-1]
    dataset = str(source.hub_id or source.data).rstrip("/").split("/")[-1]
    file = root / "output" / dataset / "runs" / f"{name}_{source.setting}_{source.mode}.jsonl"
    asked = ask_benchmark(source, file, options, lambda: load(model, weights=not options.dry_run), say)
    if asked.complete:
        _write_published(asked, source, root / "official", name, say)
    return asked.exit_code


def _write_published(asked: BenchmarkAnswers, source: Source, official: Path, model: str, say: Say) -> None:
    needed = mmmu_pro.ROWS
    for lam, path in zip(asked.lambdas, asked.outputs, strict=True):
        rows = _with_response(path)
        _write(path.parents[1] / path.name, rows, say)
        one = lam if len(asked.lambdas) > 1 else None
        twin = official / official_name(model, str(source.setting), source.mode, one)
        if len(rows) == needed:
            _write(twin, rows, say)
            continue
        why = "only the first rows were asked" if source.limit else "the protocol or bad rows leave some out"
        say(f"Not written: {twin}, because MMMU's evaluate.py takes {needed} rows and there are {len(rows)} ({why}).")


def official_name(model: str, variant: str, mode: str, lam: float | None = None) -> str:
    """A name that evaluate.py reads, and one that tells 10 from 4 options and lambdas apart.

    >>> official_name("qwen", "standard (4 options)", "cot", 0.5)
    'qwen-lam0.5-4opt_standard_cot.jsonl'
    """
    lambda_part = "" if lam is None else f"-lam{lambda_text(lam)}"
    return f"{model}{lambda_part}{OFFICIAL_NAMES[variant]}_{mode}.jsonl"


def _with_response(path: Path) -> list[dict[str, Any]]:
    """The engine's rows in the published form."""
    rows = [dict(read.row) for read in read_rows(path)]
    return [{"response": row.pop("prediction"), **{k: v for k, v in row.items() if k != "qs"}} for row in rows]


def _write(path: Path, rows: list[dict[str, Any]], say: Say) -> None:
    write_output(path, (json_bytes(row, ascii_only=False) for row in rows))
    say(f"Written: {path}")
