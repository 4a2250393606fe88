"""The position probe's results in numbers and as a map.

One result file: accuracy per position with n and 95 % interval, and whether the positions differ by more than chance.
Two result files of one data set, baseline first: both on one scale, and their paired difference.
Three or more: their maps on one scale, and the tables of `agci evidence`, each result against the first.
"""

import argparse

from transformers_agci.commands.options.figures import add_draws_options, add_json_option
from transformers_agci.commands.options.results import add_controls_options, add_results_options, say_equal
from transformers_agci.commands.options.types import number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; both spellings of the published scripts work."""
    what = "one result file, two (baseline, then AGCI), or more"
    add_results_options(parser, "--results_file", "--result_file", what=what)
    parser.add_argument("--output_heatmap", metavar="H", help="the image to draw (.png, .pdf, .svg)")
    add_json_option(parser)
    parser.add_argument("--title", default="", help="title of the image")
    for name, end in (("--vmin", "lower"), ("--vmax", "upper")):
        parser.add_argument(
            name,
            type=number,
            metavar="PERCENT",
            help=f"{end} end of the accuracies' colours (default: of the intervals)",
        )
    add_controls_options(parser)
    add_draws_options(parser, "permutations and bootstrap resamples")


def run(args: argparse.Namespace) -> int:
    """Print the numbers; draw and write what is asked for."""
    from transformers_agci.api.results import read_probe
    from transformers_agci.experiments.position.metrics import check_outputs
    from transformers_agci.report.heatmap import write_figure

    check_outputs(args.output_heatmap)
    results = read_probe(
        *args.results_file,
        negatives_file=args.negatives_file,
        labels=args.labels,
        text_only_file=args.text_only_file,
        blank_image_file=args.blank_image_file,
    )
    draws = {"draws": args.draws, "seed": args.seed}
    found = results.evidence(**draws) if len(results) > 2 else results.statistics(**draws)
    say_equal(args.results_file)
    print(found.text)
    if args.json:
        found.write_json(args.json)
    if args.output_heatmap:
        drawn = write_figure(found.maps(args.title, args.vmin, args.vmax), args.output_heatmap)
        print(f"\n{'maps' if len(results) > 2 else 'map'}: {drawn}")
    return 0
