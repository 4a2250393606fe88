"""The options that say how a run goes: of the engine's commands, and of similarity, occlusion and flow."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers_agci.experiments.block_run import RunOptions


def add_run_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """--shard, --overwrite, --strict, --quiet; returns their group."""
    group = parser.add_argument_group("run")
    group.add_argument("--shard", metavar="i/n", help="do only this share (from 0/n); then agci merge-shards")
    group.add_argument("--overwrite", action="store_true", help="start anew instead of going on where the file ends")
    group.add_argument("--strict", action="store_true", help="stop at the first bad row; default: name it and go on")
    group.add_argument("--quiet", action="store_true", help="no progress line")
    return group


def run_options(args: argparse.Namespace) -> "RunOptions":
    """What `add_run_arguments` parsed."""
    from transformers_agci.experiments.block_run import RunOptions

    return RunOptions(**_how(args))


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Those, --global_context_lambda, batches and workers."""
    asked = parser.add_argument_group("lambda")
    asked.add_argument(
        "--global_context_lambda",
        nargs="+",
        metavar="L",
        help="one or several lambdas; default: the key in the model's config.json, else 0",
    )
    asked.add_argument("--method", default="agci", help="agci, or one of its controls: uniform, random")
    asked.add_argument("--scope", default="image", help="image, or batch: the mean as the published code takes it")
    run = add_run_arguments(parser)
    run.add_argument("--batch_size", type=int, metavar="N", help="lists of images per forward call")
    run.add_argument("--workers", type=int, metavar="N", help="processes that prepare images; default: 0 on a CPU")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    run.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="show the first prompt, its tokens, the memory and the plan; loads no weights, needs no GPU",
    )


def engine_arguments(args: argparse.Namespace) -> Mapping[str, Any]:
    """The keyword arguments of `inference.run.run_questions` that `add_engine_arguments` parsed."""
    at_least(1, args, "batch_size", "limit")
    at_least(0, args, "workers")
    return {
        "batch_size": args.batch_size,
        "workers": args.workers,
        "method": args.method,
        "scope": args.scope,
        **_how(args),
    }


def given_lambdas(args: argparse.Namespace) -> list[float]:
    """The lambdas of the command line, validated; empty if there is none."""
    from transformers_agci.method.lam import parse_lambda

    return [parse_lambda(text, "--global_context_lambda") for text in args.global_context_lambda or ()]


def at_least(least: int, args: argparse.Namespace, *names: str) -> None:
    """InputError where one of these options is given and smaller."""
    from transformers_agci.errors import InputError

    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, but it is {value}.")


def _how(args: argparse.Namespace) -> dict[str, Any]:
    from transformers_agci.storage.result_file import parse_shard

    return {
        "shard": parse_shard(args.shard) if args.shard else None,
        "overwrite": args.overwrite,
        "strict": args.strict,
        "progress": not args.quiet,
    }
