"""Several results of the position probe on the same items (lambdas, methods, seeds), each against the first.

One table and one figure: accuracy, signal detection, evenness without bias, lambda x position, lambda x truth,
consistency, calibration, equivalence within a margin that is stated beforehand, Holm's correction over all of it.
"""

import argparse
from typing import get_args

from transformers_agci.commands.options.figures import add_draws_options, add_json_option
from transformers_agci.commands.options.results import (
    add_controls_options,
    add_margin_option,
    add_results_options,
    margin,
    say_equal,
)
from transformers_agci.commands.options.types import json_file, number, path
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import CHOOSE_BY, DEV_SHARE, Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_results_options(parser)
    add_margin_option(parser)
    parser.add_argument("--output_figure", metavar="F", help="the figure to draw (.png, .pdf, .svg)")
    parser.add_argument("--output_curve", metavar="F", help="results of several lambdas: their curve over lambda")
    add_json_option(parser)
    parser.add_argument("--title", default="", help="title of the figures")
    add_controls_options(parser)
    add_draws_options(parser, "permutations of the null")


def run(args: argparse.Namespace) -> int:
    """Print the tables; draw and write what is asked for."""
    from transformers_agci.api.results import read_probe
    from transformers_agci.experiments.position.curve import lambdas_of_files
    from transformers_agci.experiments.position.metrics import check_outputs
    from transformers_agci.report.heatmap import write_figure

    equal_within = margin(args)
    check_outputs(args.output_figure, args.output_curve)
    if args.output_curve:
        lambdas_of_files(args.results)  # refuses results without a curve before the work
    results = read_probe(
        *args.results,
        negatives_file=args.negatives_file,
        labels=args.labels,
        text_only_file=args.text_only_file,
        blank_image_file=args.blank_image_file,
    )
    evidence = results.evidence(equal_within, args.draws, args.seed)
    say_equal(args.results)
    print(evidence.text)
    if args.json:
        evidence.write_json(args.json)
    if args.output_figure:
        print(f"\nfigure: {write_figure(evidence.figure(args.title), args.output_figure)}")
    if args.output_curve:
        print(f"\ncurve over lambda: {write_figure(evidence.curve(args.title), args.output_curve)}")
    return 0


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `agci sweep`."""
    add_results_options(parser)
    parser.add_argument(
        "--held_out",
        nargs="+",
        type=path,
        default=[],
        metavar="H",
        help="results of another data set to report on, one per result file; without it the items are split",
    )
    parser.add_argument(
        "--dev_share", type=number, metavar="S", help=f"share of the items that chooses (default {DEV_SHARE})"
    )
    parser.add_argument(
        "--choose_by",
        choices=get_args(Choice),
        default=CHOOSE_BY,
        help="the largest balanced accuracy or AUC, or the least unevenness of the margins (default %(default)s)",
    )
    parser.add_argument("--nested", action="store_true", help="five folds, each reported on by what the others chose")
    parser.add_argument(
        "--json", metavar="OUT", type=json_file, help="write all numbers here, and the split to the manifest beside it"
    )
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # of the commands that ask; here it gets a sentence


def run_sweep(args: argparse.Namespace) -> int:
    """Lambda chosen on dev items and reported once on held-out items; the baseline is the first result.

    The results may be of any engine: a sweep asks nothing itself (`agci compare --engine vllm` asks and reports in one
    run). The items are split by a hash of their captions, which the manifest beside --json records; with --held_out
    those that report are another data set's. The best of several lambdas on the items that chose it is not reported.
    """
    from transformers_agci.api.results import read_probe
    from transformers_agci.api.sweep import sweep
    from transformers_agci.experiments.position.sweep_report import EXPERIMENT
    from transformers_agci.storage.manifest import refuse_another_kind

    if args.engine is not None:
        raise InputError(
            f"--engine {args.engine}: agci sweep asks nothing, it reads results, which may be of any engine. Ask with "
            "`agci probe --engine ... --global_context_lambda 0 0.1 ...` and give sweep what it writes, or let "
            "`agci compare --engine ...` do both."
        )
    if args.json:
        refuse_another_kind(args.json, EXPERIMENT)  # before the work
    results = read_probe(args.results, negatives_file=args.negatives_file, labels=args.labels)
    found = sweep(results, args.held_out, choose_by=args.choose_by, dev_share=args.dev_share, nested=args.nested)
    say_equal(args.results)
    print(found.text)
    if args.json:
        found.write_json(args.json)
    return 0


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `agci plan`."""
    parser.add_argument(
        "pilot", nargs="+", type=path, metavar="PILOT", help="a result file, or two (baseline, then the method)"
    )
    parser.add_argument(
        "--difference", type=number, required=True, metavar="POINTS", help="the effect to be shown, in points"
    )


def run_plan(args: argparse.Namespace) -> int:
    """How many items show an effect of a given size, with which power, from a pilot's variances.

    Two effects: positions whose accuracies differ with that standard deviation, and two results whose balanced
    accuracies differ by that much. The latter needs two pilots; with one, the two results are taken as unrelated.
    """
    from transformers_agci.api.sweep import plan

    if not 0 < args.difference < 100:
        raise InputError(f"--difference must lie between 0 and 100 points, but is {args.difference:g}.")
    say_equal(args.pilot)
    print(plan(args.pilot, args.difference).text)
    return 0
