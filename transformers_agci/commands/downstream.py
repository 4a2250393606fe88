"""The downstream benchmarks in one go, with the words of the published eval_downstream.py, model loaded once.

  python eval_downstream.py --model_path M --global_context_lambda 0.5 --data_root data/
  python eval_downstream.py --model_path M --global_context_lambda 0.5 --eval_file_path_pope pope.parquet ...

Below --data_root each benchmark has the folder that eval/<Benchmark>/README.md describes. A benchmark whose files are
not there is skipped, and said so. The protocol is the paper's unless --protocol says otherwise.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers_agci.commands.benchmark_run import Source
    from transformers_agci.experiments.benchmarks.declaration import Benchmark
    from transformers_agci.inference.load import LoadedModel

NAMES = ("scienceqa", "hallusionbench", "crpe", "textvqa", "pope")
DATA_FILES = ("*.json", "*.jsonl", "*.gz", "*.parquet", "data/*.parquet", "Full/*.parquet")
OTHER_SPELLING = {"textvqa": "textqa"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, one triple for each benchmark."""
    from transformers_agci.commands.options import add_answer_options, add_bootstrap_options, add_model_options, whole
    from transformers_agci.experiments.benchmarks.declaration import PROTOCOLS

    add_model_options(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--data_root", metavar="DIR", type=Path, help="folder with ScienceQA/, POPE/, ... (see eval/)")
    for name in NAMES:
        for option, kind in (
            ("eval_file_path", "question file or folder"),
            ("image_path", "folder of the images"),
            ("answers_file", f"default: results_downstream/{name}_answers.json"),
        ):
            flags = [f"--{option}_{spelling}" for spelling in (name, OTHER_SPELLING.get(name)) if spelling]
            data.add_argument(*flags, dest=f"{option}_{name}", metavar="PATH", type=Path, help=kind)
    data.add_argument("--annotations_textvqa", metavar="FILE", type=Path, help="TextVQA_0.5.1_val.json, for the score")
    data.add_argument(
        "--annotations_pope",
        metavar="DIR",
        type=Path,
        help="coco_pope_<category>.json, for the score of LLaVA's questions",
    )
    how = parser.add_argument_group("how it is asked")
    how.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="default: paper")
    how.add_argument("--max_new_tokens", metavar="N", type=whole(1), help="instead of the protocol's limit")
    add_bootstrap_options(how)
    add_answer_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and score every benchmark whose files are there; 1 where rows were bad, 2 where there was none."""
    from transformers_agci.inference.process_group import main_process_output

    with main_process_output():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from transformers_agci.commands.options import model_options
    from transformers_agci.errors import InputError
    from transformers_agci.experiments.benchmarks import benchmark
    from transformers_agci.inference.load import load

    sources = {name: _source(args, benchmark(name)) for name in NAMES}
    for name, source in sources.items():
        if source is None:
            place = _looked_at(args, benchmark(name)) or f"no --eval_file_path_{name}, no --data_root"
            print(f"{name}: skipped, its files are absent ({place}).")
    there = {name: source for name, source in sources.items() if source is not None}
    if not there:
        raise InputError("There is no benchmark to run: give --data_root or --eval_file_path_<benchmark>.")
    loaded = load(model_options(args), weights=not args.dry_run)
    codes = [_one(args, source, loaded) for source in there.values()]
    print(f"\n{len(there)} benchmarks asked ({', '.join(there)}), {len(NAMES) - len(there)} skipped.")
    return max(codes)


def _one(args: argparse.Namespace, source: "Source", loaded: "LoadedModel") -> int:
    """One benchmark from its rows to its score; a mistake in its files does not stop the others."""
    from transformers_agci.commands.benchmark import ask_and_score
    from transformers_agci.commands.benchmark_run import question_set
    from transformers_agci.errors import InputError

    name = source.benchmark.name
    answers = getattr(args, f"answers_file_{name}") or Path("results_downstream") / f"{name}_answers.json"
    args.annotations = getattr(args, f"annotations_{name}", None)
    print(f"\n== {source.benchmark.title}", flush=True)
    try:
        return ask_and_score(args, source, question_set(source), loaded, answers)
    except InputError as error:
        if args.strict:
            raise
        print(f"{name}: {error}")
        return 1


def _source(args: argparse.Namespace, declared: "Benchmark") -> "Source | None":
    """Where the benchmark's files are; None where they are absent."""
    from transformers_agci.commands.benchmark_run import Source

    path = _looked_at(args, declared)
    if path is None or not path.exists() or (path.is_dir() and not any(map(list, map(path.glob, DATA_FILES)))):
        return None
    return Source(
        declared,
        path,
        None,
        getattr(args, f"image_path_{declared.name}"),
        args.protocol,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
    )


def _looked_at(args: argparse.Namespace, declared: "Benchmark") -> Path | None:
    given = getattr(args, f"eval_file_path_{declared.name}")
    if given is not None:
        return Path(given)
    return args.data_root / declared.folder if args.data_root is not None else None
