"""agci demo, ruler, study, train-embedded: what needs no model of your own."""

import argparse
import functools

from transformers_agci.commands.options.rows import add_output_dir_option, add_planted_bias_option, add_processes_option
from transformers_agci.commands.options.types import SEED, add_count, path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.defaults import (
    DEMO_BIAS,
    DEMO_ITEMS,
    RULER_ITEMS,
    RULER_POOL,
    RULER_SETS,
    STUDY_ITEMS,
    STUDY_SEEDS,
    STUDY_STEPS,
)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; none is needed."""
    add_output_dir_option(parser, "demo")
    add_count(parser, "--items", DEMO_ITEMS, "items of nine composites")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the composites (default 0)")
    add_processes_option(parser)
    add_planted_bias_option(parser, DEMO_BIAS)
    parser.add_argument("--model_path", "--model", dest="model", default=EMBEDDED, help=argparse.SUPPRESS)


def run_demo(args: argparse.Namespace) -> int:
    """From nothing to a heat map: the embedded model answers 3,600 questions, with and without AGCI.

    100 items x 9 positions, asked once with the right caption and once with a wrong one, at lambda 0 and 0.5. The
    answers are always recomputed. Rows, manifests and the map are written to --output_dir.
    """
    from transformers_agci.api.demo import run_demo as run
    from transformers_agci.experiments.demo import Demo

    demo = Demo(args.output_dir, args.items, args.seed, args.processes, args.model, args.planted_bias)
    run(demo, teller(add_demo_arguments))
    return 0


def add_ruler_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; none is needed."""
    add_output_dir_option(parser, "ruler")
    add_count(parser, "--items", RULER_ITEMS, "items, or items of one item set", least=3)
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the items (default 0)")
    add_processes_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="start over instead of going on")
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument(
        "--calibration", action="store_true", help="measure the error rates of test and verdict over many item sets"
    )
    add_count(calibration, "--pool", RULER_POOL, "items to draw sets from", least=3)
    add_count(calibration, "--sets", RULER_SETS, "item sets")


def run_ruler(args: argparse.Namespace) -> int:
    """Measure biases of known size on the embedded model, and what AGCI and its controls do to them.

    A decoder bias of size 0, 0.25, 0.5, 1 and 2, and an encoder bias, each with nothing, a known repair, AGCI, uniform
    and random: one JSON file, one table, one figure in --output_dir. --calibration measures the instrument's own error
    rates instead. What is planted, and which criteria were set beforehand: docs/ruler.md. A stopped run goes on.
    """
    from transformers_agci.api.ruler import run_calibration
    from transformers_agci.api.ruler import run_ruler as run
    from transformers_agci.experiments.ruler.report import CALIBRATION_FILE, FIGURE, RulerOptions

    options = RulerOptions(
        folder=args.output_dir,
        items=args.items,
        seed=args.seed,
        processes=args.processes,
        pool=args.pool,
        sets=args.sets,
        overwrite=args.overwrite,
    )
    if args.calibration:
        print(f"{run_calibration(options).text}\n\nwritten to {options.folder / CALIBRATION_FILE}")
    else:
        print(f"{run(options).text}\nfigure: {options.folder / FIGURE}")
    return 0


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; none is needed."""
    add_output_dir_option(parser, "study")
    add_count(parser, "--seeds", STUDY_SEEDS, "trainings per lambda")
    add_count(parser, "--steps", STUDY_STEPS, "steps of 8 rows")
    add_count(parser, "--items", STUDY_ITEMS, "probe items")


def run_study(args: argparse.Namespace) -> int:
    """Fine-tune the embedded model with lambda 0 and 0.5, equal otherwise, over several seeds; probe; print a table.

    Each fine-tuned model is probed on fresh items at both lambdas, beside the model as it was. A killed study goes on
    with the same command; a finished run is not done again. The defaults take a quarter of an hour of an idle core.
    """
    from transformers_agci.api.study import run_study as run
    from transformers_agci.experiments.study.run import Study

    found = run(Study(args.output_dir, args.seeds, args.steps, args.items), functools.partial(print, flush=True))
    print(
        f"\n{args.seeds} seeds, {args.steps} steps of 8 rows, {args.items} items x 9 positions, Yes and No; percent "
        f"and points, 95 % intervals over seeds and items:\n\n{found.text}\n\nwritten to {found.file}"
    )
    return 0


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--output", type=path, required=True, metavar="FOLDER", help="where the checkpoint goes")
    parser.add_argument("--seed", type=SEED, default=0, help="of weights, images and questions (default: 0)")
    parser.add_argument(
        "--steps",
        type=whole(1),
        metavar="N",
        help="train N steps in all, shared out as in the recipe (default: the recipe)",
    )
    add_count(parser, "--items", 300, "fresh items that measure the result")


def run_train(args: argparse.Namespace) -> int:
    """Train the embedded model from scratch, on the shipped atlas, on one CPU thread (about 20 minutes).

    After each of the four stages the weights go to FOLDER/stages, and the same command goes on from there. The
    checkpoint loads with AutoProcessor and AutoModelForImageTextToText; --items fresh items show how well it answers.
    """
    from transformers_agci.embedded.evaluate import summary, train_and_evaluate

    losses, answers = train_and_evaluate(args.output, args.seed, args.steps, args.items)
    for stage, values in losses.items():
        print(f"{stage}: loss {values[0]:.3f} -> {sum(values[-10:]) / len(values[-10:]):.3f} in {len(values)} steps")
    print(summary(answers))
    print(f"The checkpoint is in {args.output}.")
    return 0
