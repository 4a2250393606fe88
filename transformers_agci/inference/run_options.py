"""The options that every command on the engine has, and what they become."""

import argparse
from collections.abc import Mapping
from typing import Any

from transformers_agci.errors import InputError


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """--global_context_lambda, batches, workers, shards, and how to treat what is there and what is bad."""
    asked = parser.add_argument_group("lambda")
    asked.add_argument("--global_context_lambda", nargs="+", metavar="L",
                       help="one or several lambdas; default: the key in the model's config.json, else 0")
    asked.add_argument("--method", default="agci", help="agci, or one of its controls: uniform, random")
    asked.add_argument("--scope", default="image", help="image, or batch: the mean as the published code takes it")
    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=int, metavar="N", help="lists of pictures per forward call")
    run.add_argument("--workers", type=int, metavar="N", help="processes that prepare pictures; default: 0 on a CPU")
    run.add_argument("--shard", metavar="i/n", help="do only this share (from 0/n); then agci merge-shards")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    run.add_argument("--overwrite", action="store_true", help="start anew instead of going on where the file ends")
    run.add_argument("--strict", action="store_true", help="stop at the first bad row; default: name it and go on")
    run.add_argument("--quiet", action="store_true", help="no progress line")
    run.add_argument("--dry_run", "--dry-run", action="store_true",
                     help="show the first prompt, its tokens, the memory and the plan; loads no weights, needs no GPU")


def run_arguments(args: argparse.Namespace) -> Mapping[str, Any]:
    """The keyword arguments of `run.run_questions` that `add_run_arguments` parsed."""
    from transformers_agci.inference.results import parse_shard

    for name in ("batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, but it is {getattr(args, name)}.")
    if args.workers is not None and args.workers < 0:
        raise InputError(f"--workers must be 0 or more, but it is {args.workers}.")
    return {
        "batch_size": args.batch_size, "workers": args.workers, "method": args.method, "scope": args.scope,
        "shard": parse_shard(args.shard) if args.shard else None, "overwrite": args.overwrite, "strict": args.strict,
        "progress": not args.quiet,
    }


def given_lambdas(args: argparse.Namespace) -> list[float]:
    """The lambdas of the command line, validated; empty if there is none."""
    from transformers_agci.lam import parse_lambda

    return [parse_lambda(text, "--global_context_lambda") for text in args.global_context_lambda or ()]
