"""Check a probe or similarity set: counts, balance, nine rows per item, duplicates, images and their sizes.

Ends with exit code 1 when there are errors.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="rows: .json, .jsonl (also .gz) or .parquet")
    parser.add_argument("--img_path", "--image_path", type=Path, help="folder of the images; default: not checked")


def run(args: argparse.Namespace) -> int:
    return report_check(args.file, args.img_path)


def report_check(file: Path, image_root: Path | None) -> int:
    """Check one file and print what was found; 1 when there are errors."""
    from tqdm import tqdm

    from transformers_agci.data.check import check

    with tqdm(unit="picture", disable=None) as bar:

        def progress(done: int, images: int) -> None:
            bar.total = images
            bar.update(done - bar.n)

        report = check(file, image_root, progress)
    print(file)
    for line in report.lines():
        print(f"  {line}")
    return 1 if report.errors else 0
