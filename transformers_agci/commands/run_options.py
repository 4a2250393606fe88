"""The options that say how a run of blocks goes, shared by similarity, occlusion and flow."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers_agci.probes.block_run import RunOptions


def add_run_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """--shard, --overwrite, --strict, --quiet; returns their group."""
    group = parser.add_argument_group("run")
    group.add_argument("--shard", metavar="i/n", help="only this share of the work (from 0/n)")
    group.add_argument("--overwrite", action="store_true", help="start anew instead of going on where the file ends")
    group.add_argument("--strict", action="store_true", help="stop at the first bad row; default: name it and go on")
    group.add_argument("--quiet", action="store_true", help="no progress line")
    return group


def run_options(args: argparse.Namespace) -> "RunOptions":
    """What `add_run_arguments` parsed."""
    from transformers_agci.inference.results import parse_shard
    from transformers_agci.probes.block_run import RunOptions

    shard = parse_shard(args.shard) if args.shard else None
    return RunOptions(overwrite=args.overwrite, strict=args.strict, progress=not args.quiet, shard=shard)


def at_least_one(args: argparse.Namespace, *names: str) -> None:
    """InputError where one of these options is given and below 1."""
    from transformers_agci.errors import InputError

    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, but is {value}.")
