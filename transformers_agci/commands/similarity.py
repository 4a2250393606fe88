"""Similarity maps: how well the vision encoder understands an image alone on a white canvas, in each of nine places.

For every row the cosine between the pooled caption embeddings and the pooled image tokens; the decoder does not run.
Without --eval_file the images come from the embedded atlas, without --model_path the embedded model is measured.
`agci metrics-similarity` turns the answer file into numbers and a map.
"""

import argparse
from typing import TYPE_CHECKING

from transformers_agci.commands.model_default import add_model_arguments, model_options
from transformers_agci.commands.run_options import add_run_arguments, at_least, run_options

if TYPE_CHECKING:
    from pathlib import Path

    from transformers_agci.experiments.positives import Positives

EMBEDDED_ITEMS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published scripts work, in both of their spellings."""
    add_model_arguments(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--eval_file", metavar="F", help="rows; default: the embedded atlas, one image per canvas")
    data.add_argument("--img_path", "--image_path", metavar="I", help="folder of the rows' images")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N rows (default 9000, as in the paper)")
    data.add_argument("--items", type=int, metavar="N", help="embedded atlas: how many items (default 100)")
    data.add_argument("--seed", type=int, default=0, help="embedded atlas: seed of the drawing (default 0)")
    data.add_argument(
        "--answer_file",
        "--answers_file",
        default="similarity.jsonl",
        metavar="A",
        help="where the similarities go (default similarity.jsonl)",
    )
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("--pooling", default="max", help="max (the paper's) or mean, over the tokens of either side")
    measured.add_argument(
        "--global_context_lambda",
        default="0",
        metavar="L",
        help="above 0: pool the image tokens after AGCI (default 0, as in the paper)",
    )
    group = add_run_arguments(parser)
    group.add_argument("--batch_size", type=int, metavar="N", help="images per call of the vision side")
    group.add_argument("--workers", type=int, metavar="N", help="processes that prepare images")


def run(args: argparse.Namespace) -> int:
    """Measure, write, and say what came out; 1 where rows were bad."""
    from transformers_agci.inference.processes import one_voice

    with one_voice():
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from pathlib import Path

    from transformers_agci.experiments.similarity import ROWS, SimilarityRun, pooling_named
    from transformers_agci.inference.load import load
    from transformers_agci.method.lam import lambda_text, parse_lambda

    at_least(1, args, "limit", "items", "batch_size")
    lam = parse_lambda(args.global_context_lambda, "--global_context_lambda")
    pooling_named(args.pooling)
    answer_file = Path(args.answer_file)
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
        print(f"{data.negatives} rows whose answer is No are left out.", flush=True)
    measured = SimilarityRun(loaded, rows, data.img_path, args.pooling, lam, args.batch_size, args.workers)
    summary = measured.write(
        answer_file, data, {"eval_file": args.eval_file, "img_path": str(data.img_path)}, run_options(args)
    )
    print("\n".join(summary.lines()))
    if not args.shard:
        print(f"\nnumbers and map: agci metrics-similarity --results_file {answer_file} --output_heatmap map.png")
    return summary.exit_code


def _data(args: argparse.Namespace, answer_file: "Path") -> "Positives":
    from pathlib import Path

    from transformers_agci.embedded.probe_set import build_similarity_set
    from transformers_agci.errors import InputError
    from transformers_agci.experiments.positives import read_positives
    from transformers_agci.storage.result_file import beside

    if args.eval_file is None:
        if args.img_path:
            raise InputError("--img_path belongs to --eval_file; without it the embedded atlas makes the images.")
        made = build_similarity_set(beside(answer_file, ".similarity_set"), args.items or EMBEDDED_ITEMS, args.seed)
        return read_positives(made.rows, made.images)
    if args.img_path is None:
        raise InputError("--img_path is needed with --eval_file: the folder that holds the rows' images.")
    return read_positives(Path(args.eval_file), Path(args.img_path))
