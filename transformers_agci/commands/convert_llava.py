"""Convert an original LLaVA checkpoint, as downloaded, into one that transformers loads.

CHECKPOINT is liuhaotian/llava-v1.5-7b, liuhaotian/llava-v1.6-mistral-7b or another LLaVA-1.5 or 1.6 in the layout of
the original repository: a folder, or a hub id. Weights may be safetensors or .bin; a .bin file is a pickle and is
read by torch's restricted reader, which makes tensors and refuses everything else.

A checkpoint that does not hold its vision tower needs --vision_tower (openai/clip-vit-large-patch14-336, its folder or
hub id). OUTPUT appears when everything is done.
"""

import argparse

from transformers_agci.commands.options.types import path
from transformers_agci.inference.load import DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id in the original layout")
    parser.add_argument("output", metavar="OUTPUT", type=path, help="folder to make")
    parser.add_argument("--vision_tower", metavar="T", help="folder or hub id of the CLIP model")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the written weights; default: the checkpoint's own",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion wrote to OUTPUT")


def run(args: argparse.Namespace) -> int:
    """Convert and say what became of everything."""
    from transformers_agci.api.conversion import run_convert

    made = run_convert(args.checkpoint, args.output, args.vision_tower, args.dtype, args.overwrite)
    print(made.text)
    if made.written:
        print(f"Next: agci self-check {made.folder}")
    return 0
