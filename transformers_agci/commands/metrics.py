"""The position probe's results in numbers and as a map.

One result file: accuracy per position with n and 95 % interval, and whether the positions differ by more than chance.
Two result files of one data set, baseline first: both on one scale, and their paired difference.
Three or more: their maps on one scale, and the tables of `agci evidence`, each result against the first.
"""

import argparse
from typing import TYPE_CHECKING

from transformers_agci.commands.options import add_draws_options, json_file, number, path
from transformers_agci.commands.result_options import add_results_options

if TYPE_CHECKING:
    from transformers_agci.experiments.position.metrics import Control
    from transformers_agci.experiments.position.results import ProbeResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; both spellings of the published scripts work."""
    parser.add_argument(
        "--results_file",
        "--result_file",
        nargs="+",
        type=path,
        required=True,
        metavar="R",
        help="one result file, two (baseline, then AGCI), or more",
    )
    parser.add_argument("--output_heatmap", metavar="H", help="the image to draw (.png, .pdf, .svg)")
    parser.add_argument("--json", metavar="OUT", type=json_file, help="write all numbers to this file")
    add_results_options(parser)
    parser.add_argument("--title", default="", help="title of the image")
    for name, end in (("--vmin", "lower"), ("--vmax", "upper")):
        parser.add_argument(
            name,
            type=number,
            metavar="PERCENT",
            help=f"{end} end of the accuracies' colours (default: of the intervals)",
        )
    parser.add_argument(
        "--text_only_file",
        nargs="+",
        type=path,
        default=[],
        metavar="T",
        help="answers without an image (agci probe --text_only): their Yes-rate stands beside the map",
    )
    parser.add_argument(
        "--blank_image_file",
        nargs="+",
        type=path,
        default=[],
        metavar="T",
        help="answers on a blank image (agci probe --blank_image)",
    )
    add_draws_options(parser, "permutations and bootstrap resamples")


def run(args: argparse.Namespace) -> int:
    """Print the numbers; draw and write what is asked for."""
    from transformers_agci.experiments.position import metrics as position_metrics
    from transformers_agci.experiments.position.measures import ResamplingConfig

    position_metrics.check_outputs(args.output_heatmap)
    limits = position_metrics.Limits(args.vmin, args.vmax)
    results = position_metrics.load_all(args.results_file, args.negatives_file, args.labels)
    controls = position_metrics.load_controls(args.text_only_file, args.blank_image_file)
    if len(results) > 2:
        return _show_many(args, results, controls)
    metrics = position_metrics.evaluate(results, controls, ResamplingConfig(args.draws, args.seed))
    position_metrics.print_metrics(metrics)
    if args.json:
        position_metrics.write_json(metrics, args.json)
    if args.output_heatmap:
        print(f"\nmap: {position_metrics.write_maps(metrics, args.output_heatmap, args.title, limits)}")
    return 0


def _show_many(args: argparse.Namespace, results: "list[ProbeResult]", controls: "list[Control]") -> int:
    """The maps of all results beside each other, and what `agci evidence` says about them."""
    from transformers_agci.experiments.position import evidence_report
    from transformers_agci.experiments.position.evidence import gather
    from transformers_agci.experiments.position.maps import Limits, draw_maps
    from transformers_agci.experiments.position.measures import ResamplingConfig

    evidence = gather(results, None, ResamplingConfig(args.draws, args.seed))
    print(evidence_report.evidence_text(evidence, controls))
    if args.json:
        evidence_report.write_json(evidence, controls, args.json)
    if args.output_heatmap:
        reports = [row.report for row in evidence.results]
        limits = Limits(args.vmin, args.vmax)
        print(f"\nmaps: {draw_maps(reports, None, args.output_heatmap, args.title, limits=limits)}")
    return 0
