"""MMMU-Pro with the words of the published infer_*.py, and files for MMMU's own evaluate.py.

  python infer_qwen2.5vl.py --model M --dataset_variant "standard (10 options)" --dataset_repo_id MMMU_Pro/ --mode cot

Three files come of a run, below --output_root:

  output/<dataset>/<model>_<variant>_<mode>.jsonl   the dataset's rows without images, with `response`
  output/<dataset>/runs/...                         the engine's file, which a killed run goes on from, and its figures
  official/<model>-10opt_standard_direct.jsonl      the same rows under a name that evaluate.py reads (-4opt, _vision_);
                                                    written for a complete run of 1,730 rows only
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers_agci.commands.benchmark_run import Source

DEBUG_ROWS = 10
OFFICIAL_NAMES = {
    "standard (10 options)": "-10opt_standard",
    "standard (4 options)": "-4opt_standard",
    "vision": "_vision",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The published flags, and the engine's."""
    from transformers_agci.commands.options import add_answer_options, add_bootstrap_options, add_model_options, whole
    from transformers_agci.experiments.benchmarks.declaration import MODES, PROTOCOLS

    add_model_options(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_repo_id",
        metavar="D",
        default="MMMU/MMMU_Pro",
        help="folder of a clone of MMMU/MMMU_Pro, or its hub id (default: MMMU/MMMU_Pro)",
    )
    data.add_argument(
        "--dataset_variant",
        metavar="V",
        choices=tuple(OFFICIAL_NAMES),
        default="vision",
        help="'standard (10 options)', 'standard (4 options)' or vision (default: vision)",
    )
    data.add_argument("--dataset_split", metavar="S", default="test", help="of a hub id (default: test)")
    data.add_argument(
        "--output_root",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="folder for output/ and official/ (default: here)",
    )
    how = parser.add_argument_group("how it is asked")
    how.add_argument("--mode", choices=MODES, default="direct", help="direct answer or chain of thought")
    how.add_argument("--protocol", choices=PROTOCOLS, help="paper: only rows with exactly one image")
    how.add_argument("--max_new_tokens", metavar="N", type=whole(1), help="default: 128 direct, 2048 cot")
    how.add_argument(
        "--debug",
        nargs="?",
        const="True",
        default="False",
        choices=("True", "False"),
        help=f"the first {DEBUG_ROWS} rows only",
    )
    add_bootstrap_options(how)
    add_answer_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, write the three files, score."""
    from transformers_agci.commands.benchmark import ask_and_score
    from transformers_agci.commands.benchmark_run import question_set
    from transformers_agci.commands.options import lambdas, model_options
    from transformers_agci.inference.load import lambdas_of, load
    from transformers_agci.inference.process_group import is_main_process, main_process_output
    from transformers_agci.storage.result_file import output_paths

    if args.debug == "True":
        args.limit = min(args.limit or DEBUG_ROWS, DEBUG_ROWS)
    args.annotations = None
    source = _source(args)
    made = question_set(source)
    loaded = load(model_options(args), weights=not args.dry_run)
    asked, _ = lambdas_of(lambdas(args), loaded)
    model = Path(args.model).resolve().name if Path(args.model).exists() else args.model.split("/")[-1]
    dataset = args.dataset_repo_id.rstrip("/").split("/")[-1]
    name = f"{model}_{args.dataset_variant}_{args.mode}.jsonl"
    engine_file = args.output_root / "output" / dataset / "runs" / name
    with main_process_output():
        code = ask_and_score(args, source, made, loaded, engine_file)
    if args.dry_run or args.shard or not is_main_process():
        return code
    for lam, path in zip(asked, output_paths(engine_file, asked), strict=True):
        rows = _with_response(path)
        _write(path.parents[1] / path.name, rows)
        twin = (
            args.output_root
            / "official"
            / official_name(model, args.dataset_variant, args.mode, lam if len(asked) > 1 else None)
        )
        _write_twin(twin, rows, args)
    return code


def _source(args: argparse.Namespace) -> "Source":
    from transformers_agci.commands.benchmark_run import Source
    from transformers_agci.experiments.benchmarks import benchmark

    local = Path(args.dataset_repo_id)
    data, hub_id = (local, None) if local.exists() else (None, args.dataset_repo_id)
    return Source(
        benchmark("mmmu_pro"),
        data,
        hub_id,
        None,
        args.protocol,
        args.mode,
        args.dataset_variant,
        args.dataset_split,
        args.limit,
        args.max_new_tokens,
    )


def official_name(model: str, variant: str, mode: str, lam: float | None = None) -> str:
    """A name that evaluate.py reads, and one that tells 10 from 4 options and lambdas apart.

    >>> official_name("qwen", "standard (4 options)", "cot", 0.5)
    'qwen-lam0.5-4opt_standard_cot.jsonl'
    """
    from transformers_agci.method.lam import lambda_text

    lambda_part = "" if lam is None else f"-lam{lambda_text(lam)}"
    return f"{model}{lambda_part}{OFFICIAL_NAMES[variant]}_{mode}.jsonl"


def _with_response(path: Path) -> list[dict[str, Any]]:
    """The engine's rows in the published form."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows.append({"response": row.pop("prediction"), **{k: v for k, v in row.items() if k != "qs"}})
    return rows


def _write_twin(path: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    from transformers_agci.experiments.benchmarks.mmmu_pro import ROWS

    if len(rows) == ROWS:
        _write(path, rows)
        return
    why = "only the first rows were asked" if args.limit else "the paper's protocol or bad rows leave some out"
    print(f"Not written: {path}, because MMMU's evaluate.py takes {ROWS} rows and there are {len(rows)} ({why}).")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from transformers_agci.storage.atomic import write_atomic
    from transformers_agci.storage.json_file import json_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json_bytes(row, ascii_only=False) for row in rows))
    print(f"Written: {path}")
