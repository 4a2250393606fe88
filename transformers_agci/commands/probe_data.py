"""The probe rows that occlusion and flow draw from: a file, or the embedded atlas where none is named."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.errors import InputError

if TYPE_CHECKING:
    from transformers_agci.experiments.positives import Positives


def positives(args: argparse.Namespace, output_dir: Path) -> "Positives":
    """The Yes rows of --eval_file, or --items items of the embedded atlas in a folder beside `output_dir`."""
    from transformers_agci.experiments.position.data import embedded_data
    from transformers_agci.experiments.positives import only_positives, read_positives

    if args.eval_file is None:
        if args.img_path:
            raise InputError("--img_path belongs to --eval_file; without it the embedded atlas makes the images.")
        folder = output_dir.with_name(f"{output_dir.name}.probe_set")
        return only_positives(embedded_data(folder, args.items, args.seed), "the embedded atlas")
    if args.img_path is None:
        raise InputError("--img_path is needed with --eval_file: the folder that holds the rows' images.")
    return read_positives(Path(args.eval_file), Path(args.img_path))
