"""Similarity maps: how well the vision encoder understands an image alone on a white canvas, in each of nine places.

For every row the cosine between the pooled caption embeddings and the pooled image tokens; the decoder does not run.
Without --eval_file the images come from the embedded atlas, without --model_path the embedded model is measured.
`agci metrics-similarity` turns the answer file into numbers and a map.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.commands.options import (
    EMBEDDED,
    SEED,
    add_answer_file_option,
    add_draws_options,
    add_lambda_option,
    add_model_options,
    add_rows_options,
    add_run_options,
    lambdas,
    model_options,
    run_options,
    whole,
)
from transformers_agci.errors import InputError

if TYPE_CHECKING:
    from transformers_agci.experiments.positives import Positives

EMBEDDED_ITEMS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published scripts work, in both of their spellings."""
    add_model_options(parser, default=EMBEDDED)
    data = parser.add_argument_group("data")
    add_rows_options(data, default="the embedded atlas, one image per canvas")
    data.add_argument(
        "--limit", type=whole(1), metavar="N", help="only the first N rows (default 9000, as in the paper)"
    )
    data.add_argument("--items", type=whole(1), metavar="N", help="embedded atlas: how many items (default 100)")
    data.add_argument("--seed", type=SEED, default=0, help="embedded atlas: seed of the composites (default 0)")
    add_answer_file_option(data, "similarity.jsonl", "similarities")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("--pooling", default="max", help="max (the paper's) or mean, over the tokens of either side")
    add_lambda_option(
        measured, "above 0: pool the image tokens after AGCI (default 0, as in the paper)", ("0",), several=False
    )
    group = add_run_options(parser)
    group.add_argument("--batch_size", type=whole(1), metavar="N", help="images per call of the vision side")
    group.add_argument("--workers", type=whole(0), metavar="N", help="processes that prepare images")


def run(args: argparse.Namespace) -> int:
    """Measure, write, and say what came out; 1 where rows were bad."""
    from transformers_agci.inference.process_group import main_process_output

    with main_process_output():
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from transformers_agci.experiments.similarity.run import ROWS, SimilarityRun, pooling_named
    from transformers_agci.inference.load import load
    from transformers_agci.method.lam import lambda_text

    (lam,) = lambdas(args)
    pooling_named(args.pooling)
    answer_file = args.answer_file
    options = model_options(args)
    data = _data(args, answer_file)
    rows = data.rows[: args.limit or ROWS]
    loaded = load(options)
    print(
        f"{len(rows)} of {len(data.rows)} rows from {args.eval_file or 'the embedded atlas'}; {loaded.family.name}, "
        f"{args.pooling} pooling, lambda {lambda_text(lam)}",
        flush=True,
    )
    if data.negatives:
        print(f"{data.negatives} rows whose answer is No are omitted.", flush=True)
    measured = SimilarityRun(loaded, rows, data.img_path, args.pooling, lam, args.batch_size, args.workers)
    summary = measured.write(
        answer_file,
        data,
        {"eval_file": str(args.eval_file) if args.eval_file else None, "img_path": str(data.img_path)},
        run_options(args),
    )
    print("\n".join(summary.lines()))
    if not args.shard:
        print(f"\nnumbers and map: agci metrics-similarity --results_file {answer_file} --output_heatmap map.png")
    return summary.exit_code


def _data(args: argparse.Namespace, answer_file: Path) -> "Positives":
    from transformers_agci.embedded.probe_set import build_similarity_set
    from transformers_agci.experiments.positives import read_positives
    from transformers_agci.storage.result_names import sibling_path

    if args.eval_file is None:
        if args.img_path:
            raise InputError("--img_path belongs to --eval_file; without it the embedded atlas makes the images.")
        made = build_similarity_set(
            sibling_path(answer_file, ".similarity_set"), args.items or EMBEDDED_ITEMS, args.seed
        )
        return read_positives(made.rows, made.images)
    if args.img_path is None:
        raise InputError("--img_path is needed with --eval_file: the folder that holds the rows' images.")
    return read_positives(args.eval_file, args.img_path)


def add_metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; both spellings of the published scripts work."""
    parser.add_argument(
        "--results_file", "--result_file", type=Path, required=True, metavar="R", help="a file of agci similarity"
    )
    parser.add_argument("--output_heatmap", "--output_file", metavar="H", help="the image to draw (.png, .pdf, .svg)")
    parser.add_argument("--json", metavar="OUT", help="write all numbers to this file")
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
