"""Proof on a checkpoint that AGCI is on and correct: a table of checks, each with its figure.

Without CHECKPOINT the embedded model is checked, without --image the question is about an image of the embedded
atlas. Exits with 1 when a check fails. With --engine vllm the log-probabilities under vLLM are held against those of
transformers with hooks.
"""

import argparse
from dataclasses import replace

from transformers_agci.commands.options.engine import add_engine_options, engine_options
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.types import path
from transformers_agci.embedded.location import EMBEDDED, embedded_model_path
from transformers_agci.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="folder or hub id, as --model_path")
    parser.add_argument("--image", metavar="I", type=path, help="the image to ask about")
    parser.add_argument(
        "--experimental",
        action="store_true",
        help="look at a model of no supported family and say what it would take; changes and writes nothing",
    )
    add_model_options(parser, default=EMBEDDED)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Load, check, print."""
    from transformers_agci.experiments.checkpoint_check import check_checkpoint, explore_checkpoint

    options = model_options(args)
    if args.checkpoint is not None:
        if args.model not in (EMBEDDED, args.checkpoint):
            raise InputError("Name the checkpoint once: as CHECKPOINT or with --model_path.")
        model = str(embedded_model_path()) if args.checkpoint == EMBEDDED else args.checkpoint
        options = replace(options, model=model)
    if args.experimental:
        found = explore_checkpoint(options, args.image)
        print(found)
        return 0 if found.served else 1
    engine = engine_options(args)
    if engine.name == "vllm":
        from transformers_agci.experiments.vllm_check import check_under_vllm

        result = check_under_vllm(options, engine.vllm, args.image)
    elif engine.name == "transformers":
        result = check_checkpoint(options, args.image)
    else:
        raise InputError(f"--engine {engine.name}: a server does not show what is inside it; transformers and vllm do.")
    print(result)
    return 0 if result.passed else 1


def add_families_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run_families(args: argparse.Namespace) -> int:
    """The supported families as a Markdown table, with what each supports; docs/families.md has the same."""
    from transformers_agci.families.overview import families_text

    print(families_text())
    return 0
