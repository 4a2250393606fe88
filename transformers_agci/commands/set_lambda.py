"""Write lambda into a local checkpoint's config.json, where every program of this environment finds it.

The file is replaced as a whole, what it was before stays beside it as config.json.bak, and the change is shown. With
--output the checkpoint stays as it is and a second folder gets the other lambda; the weights lie on disk once.
"""

import argparse

from transformers_agci.commands.options.types import path
from transformers_agci.errors import InputError
from transformers_agci.method.lam import parse_lambda


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=path, help="folder with config.json")
    parser.add_argument("lam", metavar="LAMBDA", nargs="?", help="a number >= 0; 0 is the unmodified model")
    parser.add_argument("--remove", action="store_true", help="remove the key instead")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=path,
        help="leave CHECKPOINT as it is and make this folder: hard links to its weights",
    )


def run(args: argparse.Namespace) -> int:
    """Change the file, or make the second folder, and say how."""
    from transformers_agci.api.set_lambda import run_set_lambda

    if args.remove == (args.lam is not None):
        raise InputError("Give a lambda (agci set-lambda CHECKPOINT 0.5) or --remove, one of the two.")
    lam = None if args.remove else parse_lambda(args.lam, "LAMBDA")
    print(run_set_lambda(args.checkpoint, lam, args.output).text)
    return 0
