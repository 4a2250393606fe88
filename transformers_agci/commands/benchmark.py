"""Ask a model a benchmark's questions, at one or several lambdas, and score its answers.

  agci benchmark pope --model M --data lmms-lab-POPE/ --global_context_lambda 0 0.5 --answer_file pope.jsonl
  agci benchmark mmmu_pro --model M --data MMMU_Pro/ --setting vision --mode cot --answer_file mmmu.jsonl

The answers of each lambda go to a file of their own (pope.lam0.jsonl, ...), their figures beside it
(pope.lam0.score.json). Several lambdas are compared with the first one: paired difference, interval, McNemar's test.
"""

import argparse
from pathlib import Path

from transformers_agci.commands.options.answering import add_answer_options, answer_options
from transformers_agci.commands.options.engine import add_engine_options, engine_options
from transformers_agci.commands.options.figures import add_bootstrap_options, add_tracking_option
from transformers_agci.commands.options.method import lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.types import path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.experiments.benchmarks import benchmark_names
from transformers_agci.experiments.benchmarks.declaration import MODES, PROTOCOLS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `agci benchmark`."""
    parser.add_argument("name", metavar="NAME", help=", ".join(benchmark_names()))
    add_model_options(parser)
    _add_data_options(parser.add_argument_group("data"))
    how = parser.add_argument_group("how it is asked")
    _add_asking_options(how)
    add_engine_options(parser)
    add_answer_options(parser)
    add_bootstrap_options(how)
    add_tracking_option(parser)


def _add_data_options(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--data",
        "--eval_file",
        metavar="PATH",
        type=path,
        help="question file, or the folder that eval/<Benchmark>/README.md describes",
    )
    data.add_argument("--hub_id", metavar="ID", help="instead of --data: a data set for the datasets library")
    data.add_argument(
        "--image_root",
        "--image_path",
        metavar="DIR",
        type=path,
        help="folder of the images that the rows name (default: the folder of --data)",
    )
    data.add_argument(
        "--annotations",
        metavar="PATH",
        type=path,
        help="what scoring needs beside the rows: pope's "
        "label files for LLaVA's questions, textvqa's TextVQA_0.5.1_val.json",
    )
    data.add_argument("--answer_file", "--answers_file", metavar="A", type=path, help="default: NAME.jsonl")


def _add_asking_options(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="prompt, population and token limit (default: official; hallusionbench: paper)",
    )
    how.add_argument("--mode", choices=MODES, default="direct", help="mmmu_pro: direct answer or chain of thought")
    how.add_argument(
        "--setting",
        "--dataset_variant",
        metavar="S",
        help="mmmu_pro: 'standard (10 options)', 'standard (4 options)' or vision",
    )
    how.add_argument(
        "--prompt",
        metavar="TEXT",
        help="instead of the protocol's: {question} stands for the row's question without its instruction",
    )
    how.add_argument("--max_new_tokens", metavar="N", type=whole(1), help="instead of the protocol's limit")


def run(args: argparse.Namespace) -> int:
    """Ask, write, score; 1 where rows were bad or could not be scored."""
    from transformers_agci.api.benchmark import run_benchmark
    from transformers_agci.experiments.benchmarks import benchmark
    from transformers_agci.experiments.benchmarks.asking.run import AskOptions
    from transformers_agci.experiments.benchmarks.asking.source import Source
    from transformers_agci.experiments.benchmarks.score_report import Bootstrap
    from transformers_agci.experiments.engines import open_engine
    from transformers_agci.experiments.tracking import benchmark_figures, check_tracker, track
    from transformers_agci.inference.process_group import main_process_output

    source = Source(
        benchmark(args.name),
        args.data,
        args.hub_id,
        args.image_root,
        args.protocol,
        args.mode,
        args.setting,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
        prompt=args.prompt,
        annotations=args.annotations,
    )
    asking = AskOptions(lambdas(args), answer_options(args), Bootstrap(args.resamples, args.seed), args.dry_run)
    model, engine, answers = model_options(args), engine_options(args), args.answer_file or Path(f"{args.name}.jsonl")
    check_tracker(args.report_to)
    with main_process_output():
        asked = run_benchmark(
            source,
            answers,
            asking,
            lambda: open_engine(engine, model, weights=not asking.dry_run),
            teller(add_arguments),
        )
    if args.report_to is not None and asked.complete:
        track(args.report_to, asked.files, benchmark_figures)
    return asked.exit_code
