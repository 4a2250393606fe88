"""Information flow: how much the text after the image, and the answer's position, attend to each place of it.

One image: `agci flow --image I --question Q --global_context_lambda 0 0.5` draws the flow over the image, baseline
and AGCI side by side, each with its answer. A probe file (--eval_file, or the embedded atlas where neither is named):
the mean flow per place of the target, and the share of it on the target's cell.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.commands.options import (
    EMBEDDED,
    SEED,
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
    from transformers_agci.inference.load import LoadedModel

LAMBDAS = ("0", "0.5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_options(parser, default=EMBEDDED)
    one = parser.add_argument_group("one image")
    one.add_argument("--image", type=Path, metavar="I", help="the image")
    one.add_argument("--question", metavar="Q", help="what is asked about it")
    one.add_argument(
        "--output_path",
        type=Path,
        default=Path("flow.png"),
        metavar="H",
        help="H, H with _answer (from the answer's position), and H.json (default flow.png)",
    )
    data = parser.add_argument_group("a probe file")
    add_rows_options(data)
    data.add_argument("--items", type=whole(1), default=20, metavar="N", help="items to draw (default 20)")
    data.add_argument("--seed", type=SEED, default=1, help="seed of the draw (default 1)")
    data.add_argument(
        "--output_dir", type=Path, default=Path("flow"), metavar="D", help="where results and maps go (default flow/)"
    )
    asked = parser.add_argument_group("what is asked")
    add_lambda_option(asked, "one or several lambdas, baseline first (default 0 0.5)", LAMBDAS)
    asked.add_argument("--layers", default="all", help="all, one layer, or a range such as 8-20, counted from 0")
    asked.add_argument("--max_new_tokens", type=whole(1), default=32, metavar="N", help="longest answer (default 32)")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, draw, write; 1 where rows were bad."""
    from transformers_agci.inference.process_group import main_process_output

    with main_process_output():
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from transformers_agci.inference.load import load

    asked = lambdas(args)
    if len(set(asked)) != len(asked):
        raise InputError(f"Each lambda is measured once, but the list is {' '.join(args.global_context_lambda)}.")
    if (args.image is None) != (args.question is None):
        raise InputError("--image and --question go together: an image, and what is asked about it.")
    if args.image is not None and args.eval_file is not None:
        raise InputError("--image is for one image, --eval_file for a probe file; give one of the two.")
    if args.image is not None:
        return _one_image(args, asked, load(model_options(args)))
    return _probe_file(args, asked)


def _one_image(args: argparse.Namespace, asked: list[float], loaded: "LoadedModel") -> int:
    from transformers_agci.experiments.flow.figure import as_json, draw_flow, write_json
    from transformers_agci.experiments.flow.flow import SOURCES, measure_flow
    from transformers_agci.inference.questions import ImageFile, Question
    from transformers_agci.method.lam import lambda_text
    from transformers_agci.report.heatmap import image_path

    target = image_path(args.output_path)
    image = ImageFile(args.image.parent, args.image.name, "--image")
    question = Question(row={}, where="--image", text=args.question, images=(image,))
    flows = measure_flow(loaded, question, asked, args.layers, args.max_new_tokens)
    files = {source: target if source == "text" else target.with_stem(f"{target.stem}_{source}") for source in SOURCES}
    for source, file in files.items():
        draw_flow(flows, source, image.open(), file, args.question)
    write_json(as_json(flows, str(args.image), args.question), target.with_suffix(".json"))
    for flow in flows:
        shares = ", ".join(
            f"{100 * float(flow.of(source).sum()):.1f} % of the attention from {words} is on the image"
            for source, words in SOURCES.items()
        )
        print(f"lambda {lambda_text(flow.lam)}: {flow.prediction!r}; {shares}")
    print("\n".join(f"Written: {file}" for file in [*files.values(), target.with_suffix(".json")]))
    return 0


def _probe_file(args: argparse.Namespace, asked: list[float]) -> int:
    from transformers_agci.experiments.flow.maps import aggregate, draw_maps, maps_text
    from transformers_agci.experiments.flow.run import FlowRun
    from transformers_agci.experiments.positives import draw_items, probe_positives
    from transformers_agci.inference.load import load
    from transformers_agci.inference.process_group import is_main_process
    from transformers_agci.method.lam import lambda_text

    output_dir = args.output_dir
    options = model_options(args)
    data = probe_positives(args.eval_file, args.img_path, output_dir, args.items, args.seed)
    rows = draw_items(data.items, args.items, args.seed)
    loaded = load(options)
    print(
        f"{len(rows)} rows of {min(args.items, len(data.items))} items; {loaded.family.name}, lambda "
        f"{', '.join(map(lambda_text, asked))}, layers {args.layers}",
        flush=True,
    )
    measured = FlowRun(loaded, rows, data.img_path, asked, args.layers, args.max_new_tokens)
    notes = {
        "eval_file": str(args.eval_file) if args.eval_file else None,
        "img_path": str(data.img_path),
        "items": args.items,
        "seed": args.seed,
    }
    summary = measured.write(output_dir, data, notes, run_options(args))
    print("\n".join(summary.lines()))
    if not args.shard and is_main_process() and summary.counts.rows + summary.counts.already_done:
        summed = aggregate(summary.outputs[0])
        print(f"\n{maps_text(summed)}\n")
        print("\n".join(f"map: {file}" for file in draw_maps(summed, output_dir, measured.layers_text)))
    return summary.exit_code
