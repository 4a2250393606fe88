"""Lambda, the method and its own options, as words of a command line."""

import argparse
import math
from collections.abc import Sequence

from transformers_agci.commands.options.types import whole
from transformers_agci.errors import InputError, short
from transformers_agci.method.lam import parse_lambda
from transformers_agci.method.names import CONTROLS, SEEDED
from transformers_agci.method.rivals import RIVALS

SEED_OF_A_CONTROL = whole(0, 999_999_999)


def add_lambda_option(
    group: "argparse._ArgumentGroup", text: str, default: tuple[str, ...] = (), several: bool = True
) -> None:
    """--global_context_lambda, of one or several values."""
    group.add_argument("--global_context_lambda", nargs="+" if several else 1, default=default, metavar="L", help=text)


def lambdas(args: argparse.Namespace) -> list[float]:
    """The lambdas of the command line, validated; empty if there is none."""
    return [parse_lambda(text, "--global_context_lambda") for text in args.global_context_lambda]


def add_method_options(group: "argparse._ArgumentGroup") -> None:
    """The method, its strength and other options, the seeds of a control, and the mean's scope."""
    group.add_argument(
        "--method",
        default="agci",
        metavar="NAME",
        help=f"agci; a control: {', '.join(CONTROLS)}; or a rival: {', '.join(RIVALS)}",
    )
    group.add_argument(
        "--method_options",
        nargs="+",
        default=[],
        metavar="K=V",
        help="strength and other options of a rival, or seed of a control (docs/methods.md)",
    )
    group.add_argument(
        "--method_seed",
        nargs="+",
        type=SEED_OF_A_CONTROL,
        default=[],
        metavar="S",
        help=f"seeds of {', '.join(SEEDED)} (default 0); agci probe takes several, a result file for each",
    )
    group.add_argument("--scope", default="image", help="image, or batch: the mean as the published code takes it")


def method_names(args: argparse.Namespace) -> list[str]:
    """The method as the engine and the result files name it, once per seed of a control: random-0, random-1.

    Raises InputError where a seed is given that the method does not have, or twice.
    """
    if args.method in RIVALS:
        if args.method_seed:
            raise InputError(f"--method_seed: {args.method} has no seed of this kind; give --method_options.")
        return [args.method]
    seeds = _seeds(args, _numbers_by_name(args.method_options))
    return [f"{args.method}-{seed}" for seed in seeds] or [args.method]


def rival_options(args: argparse.Namespace) -> dict[str, float]:
    """Strength and other options of a rival; empty for AGCI and its controls.

    Raises InputError where the rival has no such option, or lambda or a scope is given for it.
    """
    if args.method not in RIVALS:
        return {}
    if args.global_context_lambda:
        raise InputError(
            f"--global_context_lambda belongs to agci and its controls; {args.method} has --method_options strength=S."
        )
    if args.scope != "image":
        raise InputError(f"--scope belongs to agci and its controls; {args.method} works on each image by itself.")
    given, rival = _numbers_by_name(args.method_options), RIVALS[args.method]
    rival.settings({name: value for name, value in given.items() if name != "strength"})
    if "strength" in given:
        rival.strength_of(given["strength"], "--method_options")
    return given


def _numbers_by_name(words: Sequence[str]) -> dict[str, float]:
    """K=V words as numbers by name; InputError where one is not K=V, not a number or given twice."""
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


def _seeds(args: argparse.Namespace, given: dict[str, float]) -> list[int]:
    """Seeds of a control, from --method_seed or --method_options seed=."""
    seeds = list(args.method_seed)
    for name, value in given.items():
        if name != "seed" or args.method not in SEEDED:
            has = "seed" if args.method in SEEDED else "none (its strength is --global_context_lambda)"
            raise InputError(f"--method_options: {args.method} has no option {short(name)}; it has: {has}.")
        if seeds:
            raise InputError("--method_options: the seed is given twice, here and by --method_seed.")
        try:
            seeds = [SEED_OF_A_CONTROL(str(value))]
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--method_options: seed {error}.") from None
    if seeds and args.method not in SEEDED:
        raise InputError(f"--method_seed: {args.method} has no seed; {', '.join(SEEDED)} have one.")
    if len(set(seeds)) != len(seeds):
        raise InputError(f"--method_seed: each seed is run once, but the list is {' '.join(map(str, seeds))}.")
    return seeds
