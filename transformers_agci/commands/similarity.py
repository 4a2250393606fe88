"""Similarity maps: how well the vision encoder understands an image alone on a white canvas, in each of nine places.

For every row the cosine between the pooled caption embeddings and the pooled image tokens; the decoder does not run.
Without --eval_file the images come from the embedded atlas, without --model_path the embedded model is measured.
`agci metrics-similarity` turns the answer file into numbers and a map.
"""

import argparse

from transformers_agci.commands.options.engine import add_engine_option, check_engine_is_transformers
from transformers_agci.commands.options.figures import add_draws_options, add_json_option
from transformers_agci.commands.options.method import add_lambda_option, lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.rows import add_answer_file_option, add_rows_options
from transformers_agci.commands.options.run import add_run_options, run_options
from transformers_agci.commands.options.types import SEED, path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.defaults import ATLAS_ITEMS, POOLING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published scripts work, in both of their spellings."""
    add_model_options(parser, default=EMBEDDED)
    data = parser.add_argument_group("data")
    add_rows_options(data, default="the embedded atlas, one image per canvas")
    data.add_argument(
        "--limit", type=whole(1), metavar="N", help="only the first N rows (default 9000, as in the paper)"
    )
    data.add_argument(
        "--items", type=whole(1), metavar="N", help=f"embedded atlas: how many items (default {ATLAS_ITEMS})"
    )
    data.add_argument("--seed", type=SEED, default=0, help="embedded atlas: seed of the composites (default 0)")
    add_answer_file_option(data, "similarity.jsonl", "similarities")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--pooling", default=POOLING, help="max (the paper's) or mean, over the tokens of either side"
    )
    add_lambda_option(
        measured, "above 0: pool the image tokens after AGCI (default 0, as in the paper)", ("0",), several=False
    )
    group = add_run_options(parser)
    group.add_argument("--batch_size", type=whole(1), metavar="N", help="images per call of the vision side")
    add_engine_option(group)
    group.add_argument("--workers", type=whole(0), metavar="N", help="processes that prepare images")


def run(args: argparse.Namespace) -> int:
    """Measure, write, and say what came out; 1 where rows were bad."""
    from transformers_agci.api.similarity import run_similarity
    from transformers_agci.experiments.positives import RowsOptions
    from transformers_agci.experiments.similarity.measure import SimilarityOptions
    from transformers_agci.inference.process_group import main_process_output

    check_engine_is_transformers(args.engine, "agci similarity")
    options = SimilarityOptions(
        model_options(args), args.pooling, lambdas(args)[0], args.limit, args.batch_size, args.workers
    )
    rows = RowsOptions(args.eval_file, args.img_path, args.items or ATLAS_ITEMS, args.seed)
    run, say = run_options(args), teller(add_arguments)
    with main_process_output():
        code = run_similarity(options, rows, args.answer_file, run, say).exit_code
        if run.shard is None:
            say(
                f"\nnumbers and map: agci metrics-similarity --results_file {args.answer_file} --output_heatmap map.png"
            )
    return code


def add_metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; both spellings of the published scripts work."""
    parser.add_argument(
        "--results_file", "--result_file", type=path, required=True, metavar="R", help="a file of agci similarity"
    )
    parser.add_argument("--output_heatmap", "--output_file", metavar="H", help="the image to draw (.png, .pdf, .svg)")
    add_json_option(parser)
    parser.add_argument("--title", default="", help="title of the image")
    add_draws_options(parser, "permutations and bootstrap resamples")


def run_metrics(args: argparse.Namespace) -> int:
    """Similarity results in numbers and as a map: per position the mean with n and 95 % interval, on a scale of 0 to 1
    and on one that spans the data."""
    from transformers_agci.experiments.similarity import report as similarity_report
    from transformers_agci.report.heatmap import image_path

    if args.output_heatmap:
        image_path(args.output_heatmap)  # refuses a bad suffix before the work
    report = similarity_report.measure(similarity_report.read_similarities(args.results_file), args.draws, args.seed)
    print(similarity_report.report_text(report, args.results_file.stem))
    if args.json:
        similarity_report.write_json(report, args.json)
    if args.output_heatmap:
        print(f"\nmap: {similarity_report.draw_similarity(report, args.output_heatmap, args.title)}")
    return 0
