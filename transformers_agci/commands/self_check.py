"""Proof on a checkpoint that AGCI is on and correct: a table of checks, each with its figure.

Without CHECKPOINT the embedded model is checked, without --image the question is about an image of the embedded
atlas. Exits with 1 when a check fails.
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers_agci.inference.load import LoadedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from transformers_agci.commands.model_default import add_model_arguments

    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="folder or hub id, as --model_path")
    parser.add_argument("--image", metavar="I", help="the image to ask about")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Load, check, print."""
    from transformers_agci.commands.model_default import EMBEDDED, model_options
    from transformers_agci.errors import InputError
    from transformers_agci.inference.load import load
    from transformers_agci.method.self_check import self_check

    if args.checkpoint is not None:
        if args.model not in (EMBEDDED, args.checkpoint):
            raise InputError("Name the checkpoint once: as CHECKPOINT or with --model_path.")
        args.model = args.checkpoint
    loaded = load(model_options(args))
    _serve_key(loaded)
    result = self_check(loaded.model, _inputs(loaded, args.image))
    print(result)
    return 0 if result.passed else 1


def _serve_key(loaded: "LoadedModel") -> None:
    """Where no start-up hook did it, put AGCI on by the key: the other checks are about the method itself."""
    from transformers_agci.method.hooks import serve_key

    if loaded.lam is not None:
        serve_key(loaded.model)


def _inputs(loaded: "LoadedModel", image: str | None) -> dict[str, Any]:
    """The position probe's question about one image, as the processor makes it."""
    from pathlib import Path

    from transformers_agci.experiments.position.questions import PROMPT
    from transformers_agci.inference.prompt import chat_text, tokenize
    from transformers_agci.inference.questions import YES_NO, ImageBytes, ImageFile, ImageSource, Question

    picture: ImageSource
    if image is None:
        data, caption = _atlas_image()
        picture = ImageBytes(data, "the embedded atlas")
    else:
        path = Path(image)
        picture, caption = ImageFile(path.parent, path.name, "--image"), "a dog"
    question = Question(
        row={}, where="self-check", text=PROMPT.format(caption=caption), images=(picture,), group=0, stop=YES_NO
    )
    inputs = tokenize(loaded.processor, [chat_text(loaded.processor, question)], [[picture.open()]])
    return {
        name: value.to(loaded.device, loaded.model.dtype) if value.is_floating_point() else value.to(loaded.device)
        for name, value in inputs.items()
    }


def _atlas_image() -> tuple[bytes, str]:
    """A composite of nine atlas images, and the name of the one in the middle."""
    from transformers_agci.embedded.atlas import Atlas
    from transformers_agci.embedded.probe_set import PROBE_STREAM, render_item

    atlas = Atlas()
    rendered = render_item(atlas, (*PROBE_STREAM, 0), number=0)
    return rendered.composite(4), atlas.names[rendered.item.target]
