"""From nothing to a heat map: the embedded model answers 3,600 questions, with and without AGCI.

100 items x 9 positions, asked once with the right caption and once with a wrong one, at lambda 0 and 0.5. The answers
are always computed anew. Rows, manifests and the map are written to --output_dir.
"""

import argparse

from transformers_agci.commands.model_default import EMBEDDED

PLANTED_BIAS = 1.0  # attention logits between the top and the bottom row of cells


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; none is needed."""
    parser.add_argument("--output_dir", default="demo", metavar="D", help="where everything goes (default demo)")
    parser.add_argument("--items", type=int, default=100, metavar="N", help="items of nine composites (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the composites (default 0)")
    parser.add_argument(
        "--planted_bias",
        type=float,
        default=PLANTED_BIAS,
        metavar="B",
        help=f"size of the decoder bias planted in the model (docs/ruler.md; default {PLANTED_BIAS:g}; 0: none)",
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="one-thread processes (default 2)")
    parser.add_argument("--model_path", "--model", dest="model", default=EMBEDDED, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Ask, compare, draw."""
    from pathlib import Path

    from transformers_agci.errors import InputError
    from transformers_agci.experiments.demo import Demo

    for name in ("items", "processes"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, but is {getattr(args, name)}.")
    Demo(Path(args.output_dir), args.items, args.seed, args.processes, args.model, args.planted_bias).run()
    return 0
