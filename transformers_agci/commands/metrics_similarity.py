"""Similarity results in numbers and as a map: per position the mean with n and 95 % interval, on a scale of 0 to 1 and
on one that spans the data."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; both spellings of the published scripts work."""
    parser.add_argument("--results_file", "--result_file", required=True, metavar="R", help="a file of agci similarity")
    parser.add_argument("--output_heatmap", "--output_file", metavar="H", help="the image to draw (.png, .pdf, .svg)")
    parser.add_argument("--json", metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--title", default="", help="title of the image")
    parser.add_argument(
        "--draws", type=int, default=2000, metavar="N", help="permutations and bootstrap resamples (default 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")


def run(args: argparse.Namespace) -> int:
    """Print the numbers; draw and write what is asked for."""
    from pathlib import Path

    from transformers_agci.commands.run_options import at_least
    from transformers_agci.experiments import similarity_report
    from transformers_agci.report.heatmap import image_path

    at_least(1, args, "draws")
    if args.output_heatmap:
        image_path(args.output_heatmap)  # refuses a bad suffix before the work
    report = similarity_report.measure(similarity_report.read_similarities(args.results_file), args.draws, args.seed)
    print(similarity_report.report_text(report, Path(args.results_file).stem))
    if args.json:
        similarity_report.write_json(report, args.json)
    if args.output_heatmap:
        print(f"\nmap: {similarity_report.draw_similarity(report, args.output_heatmap, args.title)}")
    return 0
