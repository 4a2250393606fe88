"""agci data build-*: probe and similarity sets, the shipped samples, ScienceQA's question file."""

import argparse
import os
from pathlib import Path
from typing import Literal

from transformers_agci.commands.options.types import SEED, add_count, path, whole
from transformers_agci.data.built_set import CONTENTS, SET_NAMES, BuildOptions
from transformers_agci.data.fetch import FOLDERS
from transformers_agci.data.grid import Grid
from transformers_agci.data.probe_rows import MOST_CELLS


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add_build_options(parser, output_dir=FOLDERS["probe"], name=SET_NAMES["probe"], source_required=False)
    parser.add_argument(
        "--kind",
        choices=CONTENTS,
        default=BuildOptions.content,
        help="captions: composites of a source's images (default); words, digits, shapes: drawn sub-images, without a "
        "source; images: several images instead of a composite; options: one image and several captions to choose from",
    )
    parser.add_argument("--rows", type=whole(1, MOST_CELLS), help="of the grid (default: 3; images and options: 1)")
    parser.add_argument("--cols", type=whole(1, MOST_CELLS), help="of the grid (default: 3; images and options: 4)")
    parser.add_argument(
        "--distractors",
        choices=("random", "lookalike"),
        default=BuildOptions.distractors,
        help="lookalike: the pool's images that look most like the target",
    )
    parser.add_argument(
        "--target_sizes",
        type=whole(8, 20_000),
        nargs="+",
        default=(),
        metavar="PX",
        help="longer sides of the target, an item for each (default: as large as the box)",
    )
    parser.add_argument(
        "--pool",
        type=whole(0),
        default=BuildOptions.pool,
        help="pairs that distractors are drawn from (default: as many as --items)",
    )
    parser.add_argument(
        "--negatives",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also write <name>_negatives.json: the same composites, asked for a caption that is not in them",
    )


def run_probe(args: argparse.Namespace) -> int:
    """Build a probe set: nine composites per image, the target in each of nine cells among eight distractors.

    Other grids, target sizes, look-alike distractors, drawn words, numbers and shapes, sequences of images and orders
    of options: --rows, --cols, --target_sizes, --distractors, --kind (probe_datasets/README.md has the formats).

    Source: any images with captions. Written: <output_dir>/<name>.json (JSON Lines), <name>_negatives.json, the
    images in <output_dir>/<images>/, <name>.manifest.json, and <name>.dropped.jsonl with every pair left out and why.
    Started again after an interruption, the same command goes on.
    """
    return _build(_build_options("probe", args), args.workers, args.overwrite)


def add_similarity_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _add_build_options(parser, output_dir=FOLDERS["similarity"], name=SET_NAMES["similarity"])
    parser.set_defaults(
        negatives=False,
        pool=BuildOptions.pool,
        kind=BuildOptions.content,
        rows=None,
        cols=None,
        distractors=BuildOptions.distractors,
        target_sizes=BuildOptions.target_sizes,
    )


def run_similarity(args: argparse.Namespace) -> int:
    """Build a similarity set: every image alone on the canvas, in each of nine cells.

    Source: any images with captions. Written: <output_dir>/<name>.json (JSON Lines), the images in
    <output_dir>/<images>/, <name>.manifest.json, and <name>.dropped.jsonl with every pair left out and why.
    Started again after an interruption, the same command goes on.
    """
    return _build(_build_options("similarity", args), args.workers, args.overwrite)


def _add_build_options(
    parser: argparse.ArgumentParser, output_dir: Path, name: str, source_required: bool = True
) -> None:
    """The options of both."""
    _add_source_options(parser.add_argument_group("source"), source_required)
    _add_result_options(parser.add_argument_group("result"), output_dir, name)
    _add_look_options(parser.add_argument_group("look (all lengths in pixels)"))
    parser.add_argument(
        "--workers",
        type=whole(1, 1024),
        default=os.cpu_count() or 1,
        help="processes (default: all cores); no byte depends on it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there under this name")


def _add_source_options(source: "argparse._ArgumentGroup", required: bool) -> None:
    source.add_argument(
        "--source",
        required=required,
        help="folder of images with metadata.csv or metadata.jsonl (file_name, caption), parquet or arrow files, "
        "WebDataset tars as img2dataset writes them, or a hub id",
    )
    source.add_argument("--captions", help="CSV or JSONL with file names and captions, for a folder of images")
    source.add_argument("--image_column", help="column of the images (default: found by its usual names)")
    source.add_argument("--caption_column", help="column of the captions (default: found by its usual names)")
    source.add_argument("--split", help="split of a hub set (default: train)")


def _add_result_options(result: "argparse._ArgumentGroup", output_dir: Path, name: str) -> None:
    result.add_argument("--output_dir", type=path, default=output_dir, help="(default: %(default)s)")
    result.add_argument("--name", default=name, help="name of the rows file (default: %(default)s)")
    result.add_argument("--images", default="", help="folder of the images in output_dir (default: <name>_images)")
    add_count(result, "--items", BuildOptions.items, "images at most, nine rows each")
    result.add_argument(
        "--seed",
        type=SEED,
        default=BuildOptions.seed,
        help="of the distractors and absent captions (default: %(default)s)",
    )


def _add_look_options(look: "argparse._ArgumentGroup") -> None:
    """The defaults are the published geometry."""
    add_count(look, "--canvas", Grid.canvas, "side of the composite", most=20_000, metavar="PX")
    look.add_argument(
        "--box",
        type=whole(1, 20_000),
        help=f"side of a cell's box (default: {Grid.box} in 3x3, else what the canvas leaves)",
    )
    look.add_argument("--gutter", type=float, default=Grid.gutter, help="between two boxes (default: %(default)s)")
    look.add_argument(
        "--background", default=BuildOptions.background, help="colour of the canvas (default: %(default)s)"
    )
    add_count(look, "--quality", BuildOptions.quality, "of the JPEGs", most=95)


def _build_options(kind: Literal["probe", "similarity"], args: argparse.Namespace) -> BuildOptions:
    from transformers_agci.data.built_set import grid_of, needed_source
    from transformers_agci.data.sources import Source

    options = {name: getattr(args, name) for name in ("captions", "image_column", "caption_column", "split")}
    given = {name: value for name, value in options.items() if value is not None}
    source = None if args.source is None else Source(args.source, **given)
    return BuildOptions(
        kind=kind,
        content=args.kind,
        distractors=args.distractors,
        target_sizes=tuple(args.target_sizes),
        source=needed_source(args.kind, source, list(given)),
        folder=args.output_dir,
        name=args.name,
        images=args.images,
        items=args.items,
        pool=args.pool,
        grid=grid_of(args.kind, args.rows, args.cols, canvas=args.canvas, box=args.box, gutter=args.gutter),
        quality=args.quality,
        background=args.background,
        seed=args.seed,
        negatives=args.negatives,
    )


def _build(options: BuildOptions, workers: int, overwrite: bool) -> int:
    """Build and print what was built."""
    from transformers_agci.api.build import run_build

    built = run_build(options, workers, overwrite)
    print(built.text)
    negatives = f" --negatives_file {built.negatives_file}" if built.negatives_file else ""
    command = f"agci {options.kind} --eval_file {built.rows_file} --img_path {built.img_path}{negatives}"
    print(f"next: {command} --model_path MODEL --answer_file ANSWERS.jsonl")
    return 0


def add_samples_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--root", type=path, default=Path(), help="the repository (default: the current folder)")


def run_samples(args: argparse.Namespace) -> int:
    """Rebuild the shipped samples from the embedded atlas: probe_datasets/, similarity_data/ and data/."""
    from transformers_agci.data.samples import build_samples
    from transformers_agci.embedded.atlas import Atlas

    atlas = Atlas()
    sizes = build_samples(args.root, [(name, atlas.image(index)) for index, name in enumerate(atlas.names)])
    for folder, size in sizes.items():
        print(f"{folder}: {size / 1e6:.2f} MB")
    return 0


def add_scienceqa_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--problems", type=path, required=True, help="problems.json of ScienceQA")
    parser.add_argument("--pid_splits", "--splits", type=path, required=True, help="pid_splits.json of ScienceQA")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--output", type=path, default=Path("llava_test_CQM-A.json"), help="file to write (default: %(default)s)"
    )


def run_scienceqa(args: argparse.Namespace) -> int:
    """Build LLaVA's llava_test_CQM-A.json from ScienceQA's problems.json and pid_splits.json."""
    from transformers_agci.api.conversations import run_build_scienceqa

    print(run_build_scienceqa(args.problems, args.pid_splits, args.split, args.output).text)
    return 0
