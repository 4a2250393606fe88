"""Fetch the published probe or similarity set from the Hugging Face hub, say what it holds, and check it.

Loose files, zip, tar and parquet are all understood; a broken-off download goes on where it stopped.
"""

import argparse
from pathlib import Path

FOLDERS = {"probe": "probe_datasets", "similarity": "similarity_data"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", choices=sorted(FOLDERS), help="which of the two published sets")
    parser.add_argument("--output_dir", type=Path, help="(default: probe_datasets or similarity_data)")
    parser.add_argument("--local_copy", type=Path, help="folder with a copy of the set: arrange it, download nothing")


def run(args: argparse.Namespace) -> int:
    from transformers_agci.commands.data_check import report_check
    from transformers_agci.data.fetch import arrange, describe, download

    folder = args.local_copy or download(args.set, args.output_dir or Path(FOLDERS[args.set]))
    print(f"{folder} holds {describe(folder)}")
    codes = []
    for found in arrange(folder):
        print(f"rows: {found.rows}\nimages below: {found.images}")
        codes.append(report_check(found.rows, found.images))
    return max(codes)
