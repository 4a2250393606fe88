"""How a run goes: its share, starting over, bad rows, progress."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers_agci.inference.runner import RunOptions


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
