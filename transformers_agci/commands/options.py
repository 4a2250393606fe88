"""The options that several commands share, each declared once.

`add_*_options` declares a group, the function named after it reads the group back as the engine's own dataclass.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.commands.parser import STDOUT
from transformers_agci.embedded.location import EMBEDDED, MODEL_TYPE, embedded_model_path
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.defaults import DRAWS, RESAMPLES
from transformers_agci.inference.load import DTYPES
from transformers_agci.method.lam import parse_lambda
from transformers_agci.method.names import CONTROLS, SEEDED
from transformers_agci.method.rivals import RIVALS

if TYPE_CHECKING:
    from transformers_agci.inference.answering import AnswerOptions
    from transformers_agci.inference.load import LoadOptions
    from transformers_agci.inference.runner import RunOptions

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")

# --- types ------------------------------------------------------------------------------------------------------------


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least `least` and, if given, at most `most`."""

    def parse(text: str) -> int:
        if not WHOLE.fullmatch(text):
            raise argparse.ArgumentTypeError(f"must be a whole number, but is {short(text)}")
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, but is {value}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, but is {value}")
        return value

    return parse


def number(text: str) -> float:
    """The type of an option that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, but is {short(text)}")
    return value


def path(text: str) -> Path:
    """The type of an option that names a file or folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a file or folder, but is {text!r}")
    if "\0" in text:  # from a program that calls `main`; a shell cannot give one
        raise argparse.ArgumentTypeError(f"must be a file or folder, but {short(text)} holds a NUL character")
    return Path(text)


def json_file(text: str) -> Path:
    """The type of --json: a file, or "-" for the standard output, where cli.py then prints nothing else."""
    return Path(STDOUT) if text == "-" else path(text)


SEED = whole(0, 2**32 - 1)


# --- model ---------------------------------------------------------------------------------------------------------


def add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """What `LoadOptions` holds; `default` is the model if none is named, which must be given otherwise."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_path",
        "--model",
        "--model-path",
        dest="model",
        default=default,
        required=default is None,
        help="folder or hub id of the checkpoint" + (" (default: the embedded model)" if default else ""),
    )
    group.add_argument("--family", help="refuse a checkpoint of another family than this one: a model_type or a name")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="default: the checkpoint's own, but float32 for float16 on a CPU (5 times faster there)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    group.add_argument("--device_map", choices=("auto",), help="auto: spread the layers over all GPUs")
    group.add_argument("--attn_implementation", help="eager, sdpa, ...; default: transformers' choice")
    group.add_argument(
        "--vision",
        choices=("auto", "stock"),
        default="auto",
        help="auto: Qwen's vision tower in fewer, larger steps where they agree with transformers' own",
    )
    group.add_argument(
        "--kernels",
        default="auto",
        metavar="auto|stock|NAMES",
        help="auto: what does the same with less where it agrees with transformers' own; stock: none of it",
    )
    group.add_argument("--revision", help="commit, tag or branch of a hub id")
    group.add_argument("--load_in_4bit", action="store_true", help="quantize with bitsandbytes (GPU only)")
    group.add_argument("--min_pixels", type=whole(1), help="Qwen: images are enlarged to at least this many pixels")
    group.add_argument("--max_pixels", type=whole(1), help="Qwen: images are reduced to at most this many pixels")


def model_options(args: argparse.Namespace) -> "LoadOptions":
    """What was asked for, with the embedded model's folder where nothing was.

    Raises InputError where a family's own script is started without a model of that family.
    """
    from transformers_agci.families import family_called
    from transformers_agci.inference.load import LoadOptions

    options = LoadOptions(**{name: getattr(args, name) for name in LoadOptions.__dataclass_fields__})
    if options.model != EMBEDDED:
        return options
    if options.family is not None and family_called(options.family) is not family_called(MODEL_TYPE):
        raise InputError(
            "--model_path is needed: without it the embedded model answers, which is a Qwen2.5-VL, but "
            f"this command is for {options.family}."
        )
    return replace(options, model=str(embedded_model_path()))


# --- run -----------------------------------------------------------------------------------------------------------


def add_run_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """What `RunOptions` holds; returns the group."""
    group = parser.add_argument_group("run")
    group.add_argument("--shard", metavar="i/n", help="do only this share (from 0/n); then agci merge-shards")
    group.add_argument("--overwrite", action="store_true", help="start over instead of going on where the file ends")
    group.add_argument("--strict", action="store_true", help="stop at the first bad row; default: name it and go on")
    group.add_argument("--quiet", action="store_true", help="no progress line")
    return group


def run_options(args: argparse.Namespace) -> "RunOptions":
    """What `add_run_options` parsed."""
    from transformers_agci.inference.runner import RunOptions
    from transformers_agci.storage.result_names import parse_shard

    shard = parse_shard(args.shard) if args.shard is not None else None
    return RunOptions(shard, args.overwrite, args.strict, not args.quiet)


def add_answer_options(parser: argparse.ArgumentParser, lambda_unless_model: str = "") -> None:
    """Those, lambda, batches and workers: of the commands that ask questions."""
    asked = parser.add_argument_group("lambda")
    unless = f"; without --model_path {lambda_unless_model}" if lambda_unless_model else ""
    add_lambda_option(asked, f"one or several lambdas; default: the key in the model's config.json, else 0{unless}")
    asked.add_argument(
        "--method",
        default="agci",
        metavar="NAME",
        help=f"agci; a control: {', '.join(CONTROLS)}; or a rival: {', '.join(RIVALS)}",
    )
    asked.add_argument(
        "--method_options",
        nargs="+",
        default=[],
        metavar="K=V",
        help="strength and other options of a rival, or seed of a control (docs/methods.md)",
    )
    asked.add_argument(
        "--method_seed",
        nargs="+",
        type=whole(0, 999_999_999),
        default=[],
        metavar="S",
        help=f"seeds of {', '.join(SEEDED)} (default 0); agci probe takes several, a result file for each",
    )
    asked.add_argument("--scope", default="image", help="image, or batch: the mean as the published code takes it")
    run = add_run_options(parser)
    run.add_argument("--batch_size", type=whole(1), metavar="N", help="lists of images per forward call")
    run.add_argument("--workers", type=whole(0), metavar="N", help="processes that prepare images; default: 0 on a CPU")
    run.add_argument("--limit", type=whole(1), metavar="N", help="only the first N rows")
    run.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="show the first prompt, its tokens, the memory and the plan; loads no weights, needs no GPU",
    )


def answer_options(args: argparse.Namespace) -> "AnswerOptions":
    """What `add_answer_options` parsed; InputError where there are several seeds of a control."""
    found = answer_options_by_seed(args)
    if len(found) > 1:
        raise InputError("--method_seed: this command takes one seed; run it once for each.")
    return found[0]


def answer_options_by_seed(args: argparse.Namespace) -> "list[AnswerOptions]":
    """What `add_answer_options` parsed, once per seed of a control."""
    from transformers_agci.inference.answering import AnswerOptions

    given = method_options(args)
    if args.method in RIVALS:
        if args.method_seed:
            raise InputError(f"--method_seed: {args.method} has no seed of this kind; give --method_options.")
        if args.global_context_lambda:
            raise InputError(
                f"--global_context_lambda belongs to agci and its controls; {args.method} has "
                "--method_options strength=S."
            )
        if args.scope != "image":
            raise InputError(f"--scope belongs to agci and its controls; {args.method} works on each image by itself.")
        options = _checked_options(args.method, given)
        return [AnswerOptions(args.batch_size, None, args.workers, args.method, args.scope, run_options(args), options)]
    seeds = _seeds(args, given)
    methods = [f"{args.method}-{seed}" for seed in seeds] or [args.method]
    return [
        AnswerOptions(args.batch_size, None, args.workers, method, args.scope, run_options(args)) for method in methods
    ]


def method_options(args: argparse.Namespace) -> dict[str, float]:
    """--method_options as numbers by name; InputError where one is not K=V, not a number or given twice."""
    return parse_method_options(args.method_options)


def parse_method_options(words: Sequence[str]) -> dict[str, float]:
    """The same for words of any source."""
    found: dict[str, float] = {}
    for word in words:
        name, mark, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not mark or not name or not math.isfinite(value):
            raise InputError(
                f"--method_options takes K=V with a number V, such as strength=1, but one is {short(word)}."
            )
        if name in found:
            raise InputError(f"--method_options: {short(name)} is given twice.")
        found[name] = int(value) if value == int(value) else value
    return found


def _checked_options(method: str, given: dict[str, float]) -> dict[str, float]:
    """The options of a rival, checked; InputError lists what it has."""
    rival = RIVALS[method]
    rival.settings({name: value for name, value in given.items() if name != "strength"})
    if "strength" in given:
        rival.strength_of(given["strength"], "--method_options")
    return given


def _seeds(args: argparse.Namespace, given: dict[str, float]) -> list[int]:
    """Seeds of a control, from --method_seed or --method_options seed=."""
    seeds = list(args.method_seed)
    for name, value in given.items():
        if name != "seed" or args.method not in SEEDED:
            has = "seed" if args.method in SEEDED else "none (its strength is --global_context_lambda)"
            raise InputError(f"--method_options: {args.method} has no option {short(name)}; it has: {has}.")
        if seeds:
            raise InputError("--method_options: the seed is given twice, here and by --method_seed.")
        seeds = [whole(0, 999_999_999)(str(value))]
    if seeds and args.method not in SEEDED:
        raise InputError(f"--method_seed: {args.method} has no seed; {', '.join(SEEDED)} have one.")
    if len(set(seeds)) != len(seeds):
        raise InputError(f"--method_seed: each seed is run once, but the list is {' '.join(map(str, seeds))}.")
    return seeds


def add_tracking_option(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """--report_to of the commands that write result files with figures."""
    group.add_argument(
        "--report_to",
        choices=("wandb", "trackio"),
        help="also hand settings and figures of each result file to this tracker, where it is installed",
    )


def add_lambda_option(
    group: "argparse._ArgumentGroup", text: str, default: tuple[str, ...] = (), several: bool = True
) -> None:
    """--global_context_lambda, of one or several values."""
    group.add_argument("--global_context_lambda", nargs="+" if several else 1, default=default, metavar="L", help=text)


def lambdas(args: argparse.Namespace) -> list[float]:
    """The lambdas of the command line, validated; empty if there is none."""
    return [parse_lambda(text, "--global_context_lambda") for text in args.global_context_lambda]


# --- data and figures ----------------------------------------------------------------------------------------------


def add_rows_options(group: "argparse._ArgumentGroup", default: str = "composites of the embedded atlas") -> None:
    """--eval_file and --img_path, in both spellings of the published scripts."""
    group.add_argument("--eval_file", metavar="F", type=path, help=f"the rows; default: {default}")
    group.add_argument("--img_path", "--image_path", metavar="I", type=path, help="folder of the rows' images")


def add_answer_file_option(group: "argparse._ArgumentGroup", default: str, what: str) -> None:
    """--answer_file, in both spellings of the published scripts."""
    group.add_argument(
        "--answer_file",
        "--answers_file",
        type=path,
        default=Path(default),
        metavar="A",
        help=f"where the {what} go (default {default})",
    )


def add_planted_bias_option(group: "argparse._ArgumentGroup | argparse.ArgumentParser", default: float) -> None:
    """--planted_bias of the commands that ask the embedded model."""
    group.add_argument(
        "--planted_bias",
        type=number,
        default=default,
        metavar="B",
        help=f"plant a decoder bias of this size, in attention logits (docs/ruler.md; default {default:g})",
    )


def add_draws_options(parser: argparse.ArgumentParser, what: str) -> None:
    """--draws and --seed of the commands that draw maps."""
    parser.add_argument("--draws", type=whole(1), default=DRAWS, metavar="N", help=f"{what} (default {DRAWS})")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the draws (default 0)")


def add_bootstrap_options(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """--resamples and --seed of the commands that score a benchmark."""
    group.add_argument(
        "--resamples",
        metavar="N",
        type=whole(0),
        default=RESAMPLES,
        help="bootstrap resamples of the score's interval (default %(default)s; 0: no interval)",
    )
    group.add_argument("--seed", metavar="N", type=SEED, default=0, help="seed of the bootstrap (default 0)")
