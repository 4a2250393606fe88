"""Which checkpoint a command loads, and how."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers_agci.commands.options.types import whole
from transformers_agci.embedded.location import EMBEDDED, MODEL_TYPE, embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.inference.load import DTYPES

if TYPE_CHECKING:
    from transformers_agci.inference.load import LoadOptions


def add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """What `LoadOptions` holds; `default` is the model if none is named, which must be given otherwise."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_path",
        "--model",
        "--model-path",
        dest="model",
        default=default,
        required=default is None,
        help="folder or hub id of the checkpoint" + (" (default: the embedded model)" if default else ""),
    )
    group.add_argument("--family", help="refuse a checkpoint of another family than this one: a model_type or a name")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="default: the checkpoint's own, but float32 for float16 on a CPU (5 times faster there)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    group.add_argument("--device_map", choices=("auto",), help="auto: spread the layers over all GPUs")
    group.add_argument("--attn_implementation", help="eager, sdpa, ...; default: transformers' choice")
    group.add_argument(
        "--vision",
        choices=("auto", "stock"),
        default="auto",
        help="auto: Qwen's vision tower in fewer, larger steps where they agree with transformers' own",
    )
    group.add_argument(
        "--kernels",
        default="auto",
        metavar="auto|stock|NAMES",
        help="auto: what does the same with less where it agrees with transformers' own; stock: none of it",
    )
    group.add_argument("--revision", help="commit, tag or branch of a hub id")
    group.add_argument("--load_in_4bit", action="store_true", help="quantize with bitsandbytes (GPU only)")
    group.add_argument("--min_pixels", type=whole(1), help="Qwen: images are enlarged to at least this many pixels")
    group.add_argument("--max_pixels", type=whole(1), help="Qwen: images are reduced to at most this many pixels")


def model_options(args: argparse.Namespace) -> "LoadOptions":
    """What was asked for, with the embedded model's folder where nothing was.

    Raises InputError where a family's own script is started without a model of that family.
    """
    from transformers_agci.families import family_called
    from transformers_agci.inference.load import LoadOptions

    options = LoadOptions(**{name: getattr(args, name) for name in LoadOptions.__dataclass_fields__})
    if options.model != EMBEDDED:
        return options
    if options.family is not None and family_called(options.family) is not family_called(MODEL_TYPE):
        raise InputError(
            "--model_path is needed: without it the embedded model answers, which is a Qwen2.5-VL, but "
            f"this command is for {options.family}."
        )
    return replace(options, model=str(embedded_model_path()))
