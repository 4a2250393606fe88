"""One page that shows every answer behind a verdict: open it in a browser, send it to a colleague, print it.

One or several results of the position probe on the same items, the baseline first. Verdicts in words, maps with
intervals, differences, margins, ROC, the tables and figures of `agci evidence`; a click on a cell shows its items with
image, caption, and the answers and margins of every result. The page is one file and loads nothing from elsewhere.
"""

import argparse
from pathlib import Path
from typing import get_args

from transformers_agci.commands.options.figures import add_draws_options
from transformers_agci.commands.options.results import (
    add_controls_options,
    add_margin_option,
    add_results_options,
    margin,
)
from transformers_agci.commands.options.types import add_count, path
from transformers_agci.commands.parser import teller
from transformers_agci.experiments.defaults import IMAGES, THUMBNAILS, Images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_results_options(parser, metavar="RESULT")
    parser.add_argument(
        "--output", type=path, default=Path("report.html"), metavar="H", help="the page (default report.html)"
    )
    parser.add_argument("--title", default="", help="title of the page")
    _add_images(parser)
    _add_parts(parser)
    add_margin_option(parser)
    add_draws_options(parser, "permutations of the null")


def _add_images(parser: argparse.ArgumentParser) -> None:
    images = parser.add_argument_group("images")
    images.add_argument(
        "--img_path", type=path, metavar="D", help="folder of the rows' images (default: the one in the manifest)"
    )
    images.add_argument(
        "--images",
        choices=get_args(Images),
        default=IMAGES,
        help="page (default): thumbnails of images under a map and of answers that changed, or with one result of the "
        "wrong ones; folder: of "
        "all images; or none",
    )
    add_count(images, "--thumbnails", THUMBNAILS, "most thumbnails in the page")


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_argument_group("what else was measured")
    parts.add_argument(
        "--occlusion", nargs="+", type=path, default=[], metavar="D", help="folders that agci occlusion wrote"
    )
    parts.add_argument("--flow", nargs="+", type=path, default=[], metavar="D", help="folders that agci flow wrote")
    parts.add_argument("--ruler", type=path, metavar="J", help="the ruler.json that agci ruler wrote")
    add_controls_options(parts)


def run(args: argparse.Namespace) -> int:
    """Make the page and say where it is."""
    from transformers_agci.api.report import run_report
    from transformers_agci.experiments.position.measures import ResamplingConfig
    from transformers_agci.experiments.report_page.make import ReportOptions

    written = run_report(
        ReportOptions(
            results=args.results,
            output=args.output,
            negatives=args.negatives_file,
            labels=args.labels,
            title=args.title,
            img_path=args.img_path,
            images=args.images,
            thumbnails=args.thumbnails,
            occlusion=args.occlusion,
            flow=args.flow,
            ruler=args.ruler,
            text_only=args.text_only_file,
            blank_image=args.blank_image_file,
            margin=margin(args),
            resampling=ResamplingConfig(args.draws, args.seed),
        )
    )
    teller(add_arguments)(written.text)
    return 0
