"""Build the shipped samples anew from the embedded atlas: probe_datasets/, similarity_data/ and data/."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the current folder)")


def run(args: argparse.Namespace) -> int:
    from transformers_agci.data.samples import build_samples
    from transformers_agci.embedded.atlas import Atlas

    atlas = Atlas()
    build_samples(args.root, [(name, atlas.image(index)) for index, name in enumerate(atlas.names)])
    for folder in ("probe_datasets", "similarity_data", "data"):
        size = sum(path.stat().st_size for path in (args.root / folder).rglob("*") if path.is_file())
        print(f"{args.root / folder}: {size / 1e6:.2f} MB")
    return 0
