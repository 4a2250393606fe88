"""The options of a command whose model is the embedded one where none is named."""

import argparse
from typing import TYPE_CHECKING

from transformers_agci.embedded.location import EMBEDDED

if TYPE_CHECKING:
    from transformers_agci.inference.load import LoadOptions


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The loading options; --model_path is optional."""
    from transformers_agci.inference.load import add_load_arguments

    add_load_arguments(parser, default=EMBEDDED)


def model_options(args: argparse.Namespace) -> "LoadOptions":
    """What was asked for, with the embedded model's folder where nothing was.

    Raises InputError where a family's own script is started without a model of that family.
    """
    from dataclasses import replace

    from transformers_agci.embedded.location import MODEL_TYPE, embedded_model_path
    from transformers_agci.errors import InputError
    from transformers_agci.inference.load import load_options

    options = load_options(args)
    if options.model != EMBEDDED:
        return options
    if options.family not in (None, MODEL_TYPE):
        raise InputError(
            "--model_path is needed: without it the embedded model answers, which is a Qwen2.5-VL, but "
            f"this command is for {options.family}."
        )
    return replace(options, model=str(embedded_model_path()))
