"""Join what the shards of a job array wrote: `agci merge-shards A.jsonl`, after every `--shard i/n` has finished.

The blocks lie in A.parts/; they are put into A.jsonl in the order of the input, the same bytes as one process would
have written, and A.parts/ is removed. Several lambdas: name each of the files A.lam0.jsonl, A.lam0.5.jsonl.
"""

import argparse

from transformers_agci.commands.options.types import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "answer_file", metavar="ANSWER_FILE", nargs="+", type=path, help="the answer file that the shards were given"
    )


def run(args: argparse.Namespace) -> int:
    """Merge each file; 1 if rows of it were skipped."""
    from transformers_agci.errors import counted
    from transformers_agci.storage.result_file import merge_shards

    failed = 0
    for file in args.answer_file:
        merged = merge_shards(file)
        print(f"Written: {merged.path} ({counted(merged.rows, 'row')})")
        for row in merged.failed[:20]:
            print(f"  without an answer: {row.error}")
        failed += len(merged.failed)
    return 1 if failed else 0
