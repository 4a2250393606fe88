"""Information flow: how much the text after the image, and the answer's position, attend to each place of it.

One image: `agci flow --image I --question Q --global_context_lambda 0 0.5` draws the flow over the image, baseline
and AGCI side by side, each with its answer. A probe file (--eval_file, or the embedded atlas where neither is named):
the mean flow per place of the target, and the share of it on the target's cell.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.commands.options.method import add_lambda_option, lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.rows import add_drawn_items_options, add_output_dir_option, add_rows_options
from transformers_agci.commands.options.run import add_run_options, run_options
from transformers_agci.commands.options.types import add_count, path
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import FLOW_LAYERS, FLOW_TOKENS

if TYPE_CHECKING:
    from transformers_agci.experiments.flow.measure import FlowOptions
    from transformers_agci.inference.progress import Say

LAMBDAS = ("0", "0.5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_options(parser, default=EMBEDDED)
    one = parser.add_argument_group("one image")
    one.add_argument("--image", type=path, metavar="I", help="the image")
    one.add_argument("--question", metavar="Q", help="what is asked about it")
    one.add_argument(
        "--output_path",
        type=path,
        default=Path("flow.png"),
        metavar="H",
        help="H, H with _answer (from the answer's position), and H.json (default flow.png)",
    )
    data = parser.add_argument_group("a probe file")
    add_rows_options(data)
    add_drawn_items_options(data)
    add_output_dir_option(data, "flow", "where results and maps go")
    asked = parser.add_argument_group("what is asked")
    add_lambda_option(asked, "one or several lambdas, baseline first (default 0 0.5)", LAMBDAS)
    asked.add_argument("--layers", default=FLOW_LAYERS, help="all, one layer, or a range such as 8-20, counted from 0")
    add_count(asked, "--max_new_tokens", FLOW_TOKENS, "longest answer in tokens")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, draw, write; 1 where rows were bad."""
    from transformers_agci.api.flow import run_flow
    from transformers_agci.experiments.flow.measure import FlowOptions
    from transformers_agci.experiments.positives import RowsOptions
    from transformers_agci.inference.process_group import main_process_output

    if (args.image is None) != (args.question is None):
        raise InputError("--image and --question go together: an image, and what is asked about it.")
    if args.image is not None and args.eval_file is not None:
        raise InputError("--image is for one image, --eval_file for a probe file; give one of the two.")
    options = FlowOptions(model_options(args), lambdas(args), args.layers, args.max_new_tokens)
    say = teller(add_arguments)
    with main_process_output():
        if args.image is not None:
            return _flow_of_image(options, args.image, args.question, args.output_path, say)
        rows = RowsOptions(args.eval_file, args.img_path, args.items, args.seed)
        return run_flow(options, rows, args.output_dir, run_options(args), say).exit_code


def _flow_of_image(options: "FlowOptions", image: Path, question: str, output_path: Path, say: "Say") -> int:
    """One image: its flow over it as two images, and all numbers as JSON."""
    from transformers_agci.api.flow import run_flow_of
    from transformers_agci.report.heatmap import image_path

    target = image_path(output_path)  # refuses a bad suffix before the work
    found = run_flow_of(options, image, question)
    files = found.write(target)
    for line in [*found.lines, *(f"Written: {file}" for file in files)]:
        say(line)
    return 0
