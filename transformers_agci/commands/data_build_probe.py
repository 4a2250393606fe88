"""Build a probe set: nine composites per image, the target in each of nine cells among eight distractors.

Source: any images with captions. Written: <output_dir>/<name>.json (JSON Lines), <name>_negatives.json, the
images in <output_dir>/<images>/, <name>.manifest.json, and <name>.dropped.jsonl with every pair left out and why.
Started again after an interruption, the same command goes on.
"""

import argparse
import os
from pathlib import Path
from typing import Literal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_build_arguments(parser, output_dir="probe_datasets", name="probe_840_840")
    parser.add_argument(
        "--pool", type=int, default=0, help="pairs that distractors are drawn from (default: as many as --items)"
    )
    parser.add_argument(
        "--negatives",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also write <name>_negatives.json: the same composites, asked for a caption that is not in them",
    )


def run(args: argparse.Namespace) -> int:
    return build_set("probe", args)


def add_build_arguments(parser: argparse.ArgumentParser, output_dir: str, name: str) -> None:
    """The options of build-probe and build-similarity; the defaults are the published geometry."""
    source = parser.add_argument_group("source")
    source.add_argument(
        "--source",
        required=True,
        help="folder of images with metadata.csv or metadata.jsonl (file_name, caption), parquet or arrow files, "
        "WebDataset tars as img2dataset writes them, or a hub id",
    )
    source.add_argument("--captions", help="CSV or JSONL with file names and captions, for a folder of images")
    source.add_argument("--image_column", help="column of the images (default: found by its usual names)")
    source.add_argument("--caption_column", help="column of the captions (default: found by its usual names)")
    source.add_argument("--split", default="train", help="split of a hub set (default: %(default)s)")
    result = parser.add_argument_group("result")
    result.add_argument("--output_dir", type=Path, default=Path(output_dir), help="(default: %(default)s)")
    result.add_argument("--name", default=name, help="name of the rows file (default: %(default)s)")
    result.add_argument("--images", default="", help="folder of the images in output_dir (default: <name>_images)")
    result.add_argument("--items", type=int, default=10_000, help="images at most, nine rows each (default: 10000)")
    result.add_argument("--seed", type=int, default=0, help="of the distractors and absent captions (default: 0)")
    look = parser.add_argument_group("look (all lengths in pixels)")
    look.add_argument("--canvas", type=int, default=840, help="side of the composite (default: %(default)s)")
    look.add_argument("--box", type=int, default=270, help="side of a cell's box (default: %(default)s)")
    look.add_argument("--gutter", type=float, default=7.2, help="between two boxes (default: %(default)s)")
    look.add_argument("--background", default="white", help="colour of the canvas (default: %(default)s)")
    look.add_argument("--quality", type=int, default=75, help="of the JPEGs (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes (default: all cores); no byte depends on it",
    )
    parser.add_argument("--overwrite", action="store_true", help="build anew what stands under this name")


def build_set(kind: Literal["probe", "similarity"], args: argparse.Namespace) -> int:
    """Build from the parsed options and print what was built."""
    from tqdm import tqdm

    from transformers_agci.data.build import build
    from transformers_agci.data.grid import Grid
    from transformers_agci.data.options import BuildOptions
    from transformers_agci.data.set_manifest import counted
    from transformers_agci.data.sources import Source

    options = BuildOptions(
        kind=kind,
        source=Source(args.source, args.captions, args.image_column, args.caption_column, args.split),
        folder=args.output_dir,
        name=args.name,
        images=args.images,
        items=args.items,
        pool=args.pool,
        grid=Grid.centred(args.canvas, args.box, args.gutter),
        quality=args.quality,
        background=args.background,
        seed=args.seed,
        negatives=args.negatives,
    )
    with tqdm(unit="item", disable=None) as bar:

        def progress(done: int, items: int) -> None:
            bar.total = items
            bar.update(done - bar.n)

        summary = build(options, args.workers, args.overwrite, progress)
    stood = summary.items - summary.painted
    print(f"{summary.rows_file}: {summary.items} items, {summary.composites} composites, {stood} items of them stood")
    print(f"dropped: {counted(summary.dropped)}")
    print(f"sha256 of the set: {summary.sha256}")
    return 0
