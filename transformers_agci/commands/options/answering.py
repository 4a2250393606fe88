"""How questions are answered: lambda and method, batches, workers, and the run."""

import argparse
from typing import TYPE_CHECKING

from transformers_agci.commands.options.method import add_lambda_option, add_method_options, method_names, rival_options
from transformers_agci.commands.options.run import add_run_options, run_options
from transformers_agci.commands.options.types import whole
from transformers_agci.errors import InputError

if TYPE_CHECKING:
    from transformers_agci.inference.answering import AnswerOptions


def add_answer_options(parser: argparse.ArgumentParser, lambda_unless_model: str = "") -> None:
    """Those, lambda, batches and workers: of the commands that ask questions."""
    asked = parser.add_argument_group("lambda")
    unless = f"; without --model_path {lambda_unless_model}" if lambda_unless_model else ""
    add_lambda_option(asked, f"one or several lambdas; default: the key in the model's config.json, else 0{unless}")
    add_method_options(asked)
    run = add_run_options(parser)
    run.add_argument("--batch_size", type=whole(1), metavar="N", help="lists of images per forward call")
    run.add_argument("--workers", type=whole(0), metavar="N", help="processes that prepare images; default: 0 on a CPU")
    run.add_argument("--limit", type=whole(1), metavar="N", help="only the first N rows")
    run.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="show the first prompt, its tokens, the memory and the plan; loads no weights, needs no GPU",
    )


def answer_options(args: argparse.Namespace) -> "AnswerOptions":
    """What `add_answer_options` parsed; InputError where there are several seeds of a control."""
    found = answer_options_by_seed(args)
    if len(found) > 1:
        raise InputError("--method_seed: this command takes one seed; run it once for each.")
    return found[0]


def answer_options_by_seed(args: argparse.Namespace) -> "list[AnswerOptions]":
    """What `add_answer_options` parsed, once per seed of a control."""
    from transformers_agci.inference.answering import AnswerOptions

    options, run = rival_options(args), run_options(args)
    return [
        AnswerOptions(args.batch_size, None, args.workers, method, args.scope, run, options)
        for method in method_names(args)
    ]
