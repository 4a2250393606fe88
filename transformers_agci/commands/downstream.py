"""The downstream benchmarks in one go, with the words of the published eval_downstream.py, model loaded once.

  python eval_downstream.py --model_path M --global_context_lambda 0.5 --data_root data/
  python eval_downstream.py --model_path M --global_context_lambda 0.5 --eval_file_path_pope pope.parquet ...

Below --data_root each benchmark has the folder that eval/<Benchmark>/README.md describes. A benchmark whose files are
not there is skipped, and said so. The protocol is the paper's unless --protocol says otherwise.
"""

import argparse

from transformers_agci.commands.options.answering import add_answer_options, answer_options
from transformers_agci.commands.options.figures import add_bootstrap_options
from transformers_agci.commands.options.method import lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.types import path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.experiments.benchmarks.declaration import PROTOCOLS

NAMES = ("scienceqa", "hallusionbench", "crpe", "textvqa", "pope")
OTHER_SPELLING = {"textvqa": "textqa"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, one triple for each benchmark."""
    add_model_options(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--data_root", metavar="DIR", type=path, help="folder with ScienceQA/, POPE/, ... (see eval/)")
    for name in NAMES:
        for option, kind in (
            ("eval_file_path", "question file or folder"),
            ("image_path", "folder of the images"),
            ("answers_file", f"default: results_downstream/{name}_answers.json"),
        ):
            flags = [f"--{option}_{spelling}" for spelling in (name, OTHER_SPELLING.get(name)) if spelling]
            data.add_argument(*flags, dest=f"{option}_{name}", metavar="PATH", type=path, help=kind)
    data.add_argument("--annotations_textvqa", metavar="FILE", type=path, help="TextVQA_0.5.1_val.json, for the score")
    data.add_argument(
        "--annotations_pope",
        metavar="DIR",
        type=path,
        help="coco_pope_<category>.json, for the score of LLaVA's questions",
    )
    how = parser.add_argument_group("how it is asked")
    how.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="default: paper")
    how.add_argument("--max_new_tokens", metavar="N", type=whole(1), help="instead of the protocol's limit")
    add_bootstrap_options(how)
    add_answer_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and score every benchmark whose files are there; 1 where rows were bad, 2 where there was none."""
    from transformers_agci.experiments.benchmarks.asking.downstream import DownstreamOptions, Files, ask_all
    from transformers_agci.experiments.benchmarks.asking.run import AskOptions
    from transformers_agci.experiments.benchmarks.score_report import Bootstrap
    from transformers_agci.inference.process_group import main_process_output

    files = {
        name: Files(
            getattr(args, f"eval_file_path_{name}"),
            getattr(args, f"image_path_{name}"),
            getattr(args, f"answers_file_{name}"),
            getattr(args, f"annotations_{name}", None),
        )
        for name in NAMES
    }
    asking = AskOptions(lambdas(args), answer_options(args), Bootstrap(args.resamples, args.seed), args.dry_run)
    options = DownstreamOptions(
        model_options(args), asking, args.protocol, args.limit, args.max_new_tokens, args.data_root, files
    )
    with main_process_output():
        return ask_all(options, teller(add_arguments))
