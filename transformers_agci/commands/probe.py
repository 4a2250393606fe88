"""The position probe: is there a sub-image that matches the caption, with the target in each cell of a grid?

Without --eval_file the images come from the embedded atlas, without --model_path the embedded model answers: so
`agci probe` alone does something. The answers go to --answer_file (several lambdas: A.lam0.jsonl, A.lam0.5.jsonl);
`agci metrics` turns them into numbers and a map.
"""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers_agci.commands.options.answering import add_answer_options, answer_options_by_seed
from transformers_agci.commands.options.engine import add_engine_options, engine_options
from transformers_agci.commands.options.figures import add_tracking_option
from transformers_agci.commands.options.method import lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.rows import add_answer_file_option, add_planted_bias_option, add_rows_options
from transformers_agci.commands.options.types import SEED, path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.defaults import ATLAS_ITEMS
from transformers_agci.method.lam import lambda_text
from transformers_agci.method.rivals import RIVALS

if TYPE_CHECKING:
    from transformers_agci.experiments.position.ask import ProbeOptions

EMBEDDED_LAMBDAS = (0.0, 0.5)  # of the embedded model where none is named: it is there to show the difference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published scripts work, in both of their spellings."""
    add_model_options(parser, default=EMBEDDED)
    data = parser.add_argument_group("data")
    add_rows_options(data)
    data.add_argument(
        "--negatives_file", type=path, metavar="N", help="rows whose right answer is No, on the same images"
    )
    data.add_argument(
        "--items", type=whole(1), metavar="N", help=f"only the first N items (embedded atlas: N, default {ATLAS_ITEMS})"
    )
    data.add_argument("--seed", type=SEED, default=0, help="seed of the embedded atlas's composites (default 0)")
    add_answer_file_option(data, "position_probe.jsonl", "answers")
    add_planted_bias_option(data, 0.0)
    data.add_argument("--text_only", action="store_true", help="ask also without any image: A.text_only.jsonl")
    data.add_argument("--blank_image", action="store_true", help="ask also on a white image: A.blank_image.jsonl")
    add_engine_options(parser)
    add_answer_options(parser, " and ".join(map(lambda_text, EMBEDDED_LAMBDAS)))
    add_tracking_option(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, write, and say what came out; 1 where rows were bad."""
    from transformers_agci.experiments.position.ask import ProbeOptions
    from transformers_agci.experiments.position.questions import Control
    from transformers_agci.experiments.tracking import check_tracker

    model, given, by_seed = model_options(args), lambdas(args), answer_options_by_seed(args)
    by_default = not given and args.model == EMBEDDED and args.method not in RIVALS
    options = ProbeOptions(
        model,
        args.eval_file,
        args.img_path,
        args.negatives_file,
        args.items,
        args.limit,
        args.seed,
        args.answer_file,
        EMBEDDED_LAMBDAS if by_default else given,
        "the default of the embedded model" if by_default else "the command line",
        [control for control in Control if getattr(args, control.value)],
        args.planted_bias,
        by_seed[0],
        args.dry_run,
        engine_options(args),
    )
    check_tracker(args.report_to)
    return max(_ask(replace(options, answers=answers), args.report_to) for answers in by_seed)


def _ask(options: "ProbeOptions", tracker: str | None) -> int:
    """Ask with one method, and say how its results are made into numbers."""
    from transformers_agci.api.probe import run_probe
    from transformers_agci.experiments.tracking import probe_figures, track

    probed = run_probe(options, teller(add_arguments))
    if probed.files:
        files = {"results": probed.files, **probed.control_files}
        words = " ".join(f"--{name}_file {' '.join(map(str, paths))}" for name, paths in files.items())
        print(f"\nnumbers and map: agci metrics {words} --output_heatmap map.png")
    if len(probed.files) > 2:
        print(f"curve over lambda: agci evidence {' '.join(map(str, probed.files))} --output_curve curve.png")
    if tracker is not None:
        track(tracker, probed.files, probe_figures)
    return probed.exit_code
