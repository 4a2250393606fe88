"""MMMU-Pro with the words of the published infer_*.py, and files for MMMU's own evaluate.py.

  python infer_qwen2.5vl.py --model M --dataset_variant "standard (10 options)" --dataset_repo_id MMMU_Pro/ --mode cot

Three files come of a run, below --output_root:

  output/<dataset>/<model>_<variant>_<mode>.jsonl   the dataset's rows without images, with `response`
  output/<dataset>/runs/...                         the engine's file, which a killed run goes on from, and its figures
  official/<model>-10opt_standard_direct.jsonl      the same rows under a name that evaluate.py reads (-4opt, _vision_);
                                                    written for a complete run of 1,730 rows only
"""

import argparse
from pathlib import Path

from transformers_agci.commands.options.answering import add_answer_options, answer_options
from transformers_agci.commands.options.figures import add_bootstrap_options
from transformers_agci.commands.options.method import lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.types import path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.experiments.benchmarks.declaration import MODES, PROTOCOLS

DEBUG_ROWS = 10
VARIANTS = ("standard (10 options)", "standard (4 options)", "vision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The published flags, and the engine's."""
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
        choices=VARIANTS,
        default="vision",
        help="'standard (10 options)', 'standard (4 options)' or vision (default: vision)",
    )
    data.add_argument("--dataset_split", metavar="S", default="test", help="of a hub id (default: test)")
    data.add_argument(
        "--output_root",
        metavar="DIR",
        type=path,
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
    from transformers_agci.experiments.benchmarks import benchmark
    from transformers_agci.experiments.benchmarks.asking.mmmu_pro_files import ask_mmmu_pro
    from transformers_agci.experiments.benchmarks.asking.run import AskOptions
    from transformers_agci.experiments.benchmarks.asking.source import Source, data_or_hub_id
    from transformers_agci.experiments.benchmarks.score_report import Bootstrap
    from transformers_agci.inference.process_group import main_process_output

    source = Source(
        benchmark("mmmu_pro"),
        *data_or_hub_id(args.dataset_repo_id),
        None,
        args.protocol,
        args.mode,
        args.dataset_variant,
        args.dataset_split,
        min(args.limit or DEBUG_ROWS, DEBUG_ROWS) if args.debug == "True" else args.limit,
        args.max_new_tokens,
    )
    asking = AskOptions(lambdas(args), answer_options(args), Bootstrap(args.resamples, args.seed), args.dry_run)
    with main_process_output():
        return ask_mmmu_pro(model_options(args), source, asking, args.output_root, teller(add_arguments))
