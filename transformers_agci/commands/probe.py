"""The position probe: is there a sub-image that matches the caption, with the target in each cell of a grid?

Without --eval_file the images come from the embedded atlas, without --model_path the embedded model answers: so
`agci probe` alone does something. The answers go to --answer_file (several lambdas: A.lam0.jsonl, A.lam0.5.jsonl);
`agci metrics` turns them into numbers and a map.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.commands.options import (
    EMBEDDED,
    SEED,
    add_answer_file_option,
    add_answer_options,
    add_model_options,
    add_planted_bias_option,
    add_rows_options,
    answer_options,
    lambdas,
    model_options,
    whole,
)
from transformers_agci.errors import InputError
from transformers_agci.method.lam import lambda_text

if TYPE_CHECKING:
    from transformers_agci.experiments.position.data import ProbeData
    from transformers_agci.experiments.position.questions import Control
    from transformers_agci.experiments.position.run import PositionProbe

EMBEDDED_ITEMS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published scripts work, in both of their spellings."""
    add_model_options(parser, default=EMBEDDED)
    data = parser.add_argument_group("data")
    add_rows_options(data)
    data.add_argument(
        "--negatives_file", type=Path, metavar="N", help="rows whose right answer is No, on the same images"
    )
    data.add_argument(
        "--items", type=whole(1), metavar="N", help="only the first N items (embedded atlas: N, default 100)"
    )
    data.add_argument("--seed", type=SEED, default=0, help="seed of the embedded atlas's composites (default 0)")
    add_answer_file_option(data, "position_probe.jsonl", "answers")
    add_planted_bias_option(data, 0.0)
    data.add_argument("--text_only", action="store_true", help="ask also without any image: A.text_only.jsonl")
    data.add_argument("--blank_image", action="store_true", help="ask also on a white image: A.blank_image.jsonl")
    add_answer_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, write, and say what came out; 1 where rows were bad."""
    from transformers_agci.inference.process_group import ProcessGroup, main_process_output

    with contextlib.ExitStack() as stack:
        group = stack.enter_context(ProcessGroup())  # one for the probe and its controls
        stack.enter_context(main_process_output())
        drawn_in = stack.enter_context(tempfile.TemporaryDirectory()) if args.dry_run else None
        return _run(args, drawn_in, group.is_main)


def _run(args: argparse.Namespace, drawn_in: str | None, is_main: bool) -> int:
    """`drawn_in` is where the embedded atlas's composites go; default: beside the answers."""
    from transformers_agci.experiments.position.questions import Control
    from transformers_agci.experiments.position.run import PositionProbe
    from transformers_agci.inference.load import lambdas_of, load
    from transformers_agci.storage.result_names import sibling_path

    given, options = lambdas(args), answer_options(args)
    answer_file = args.answer_file
    wanted = model_options(args)
    data = _data(args, Path(drawn_in, "probe_set") if drawn_in else sibling_path(answer_file, ".probe_set"))
    loaded = load(wanted, weights=not args.dry_run)
    asked, source = lambdas_of(given, loaded)
    print(
        f"lambda {', '.join(map(lambda_text, asked))} (from {source}); {loaded.family.name}, model {args.model}",
        flush=True,
    )
    print(f"{data.rows} rows, {len(data.items)} items from {args.eval_file or 'the embedded atlas'}", flush=True)
    notes = {
        "lambda_source": source,
        "eval_file": str(args.eval_file) if args.eval_file else None,
        "img_path": str(data.img_path),
    }
    probe = PositionProbe(loaded, data, asked, answer_file, options, notes, args.planted_bias)
    controls = [control for control in Control if getattr(args, control.value)]
    if args.dry_run:
        return _dry_run(probe, controls)
    summaries = [probe.ask(), *(probe.ask_without_image(control) for control in controls)]
    for line in (line for summary in summaries for line in summary.lines()):
        print(line)
    if is_main and all(summary.complete for summary in summaries):
        _show(probe, controls)
    return max(summary.exit_code for summary in summaries)


def _data(args: argparse.Namespace, drawn: Path) -> "ProbeData":
    """The rows of --eval_file, or composites drawn into the folder `drawn`."""
    from transformers_agci.experiments.position.data import embedded_data, read_data

    if args.eval_file is None:
        if args.img_path or args.negatives_file:
            raise InputError(
                "--img_path and --negatives_file belong to --eval_file; without it the embedded atlas "
                "makes the images and the negatives."
            )
        return embedded_data(drawn, args.items or EMBEDDED_ITEMS, args.seed, args.limit)
    if args.img_path is None:
        raise InputError("--img_path is needed with --eval_file: the folder that holds the rows' images.")
    return read_data(args.eval_file, args.img_path, args.negatives_file, args.items, args.limit)


def _dry_run(probe: "PositionProbe", controls: Sequence["Control"]) -> int:
    """Say what would be done; bad rows are named all the same."""
    from transformers_agci.experiments.position.questions import questions
    from transformers_agci.inference.dry_run import describe

    outputs = [*probe.outputs, *(path for control in controls for path in probe.control_outputs(control))]
    asked = questions(probe.data.items, probe.data.img_path)
    for line in describe(probe.loaded, asked, probe.lambdas, outputs, batch_size=probe.options.batch_size):
        print(line)
    for row in probe.data.bad_rows:
        print(row.error)
    return 1 if probe.data.bad_rows else 0


def _show(probe: "PositionProbe", controls: Sequence["Control"]) -> None:
    """Accuracy per lambda, the Yes-rates without an image, and the command that draws the map."""
    from transformers_agci.experiments.position.metrics import accuracies_text, controls_text, load_controls

    files = {control.value: probe.control_outputs(control) for control in controls}
    print(f"\n{accuracies_text(probe.outputs)}")
    if controls:
        print(f"\n{controls_text(load_controls(files.get('text_only', []), files.get('blank_image', [])))}")
    if len(probe.outputs) <= 2:
        options = {"results": probe.outputs, **files}
        words = " ".join(f"--{name}_file {' '.join(map(str, paths))}" for name, paths in options.items())
        print(f"\nnumbers and map: agci metrics {words} --output_heatmap map.png")
