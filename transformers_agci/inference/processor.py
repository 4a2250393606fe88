"""The processor of a checkpoint: loaded, held against its family, and what of it the manifest records."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from transformers_agci.errors import InputError, error_line
from transformers_agci.inference.prompt import tokenize


def load_processor(folder: Path, family: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """The processor of a model folder: it pads on the left, has a chat template and makes images of the asked size.

    Raises InputError where files are missing or belong to another family, or where the family has no such size.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:
        raise InputError(
            f"The processor in {folder} cannot be loaded ({error_line(error)}); a model folder also holds "
            "the tokenizer and preprocessor_config.json."
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise InputError(
            f"{folder} holds a {type(processor).__name__} instead of a processor for text and images; "
            "preprocessor_config.json may be missing."
        )
    _check_processor(folder, processor, family)
    ready_processor(processor, str(folder))
    _pin_image_size(processor, family, min_pixels, max_pixels)
    return processor


def ready_processor(processor: Any, where: str) -> Any:
    """The processor itself, made ready to ask: chat template, padding on the left, a token to pad with.

    InputError (naming `where`) where it has no chat template.
    """
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise InputError(
            f"{where} has no chat template (chat_template.jinja or chat_template.json), so the model's "
            "own prompt form is unknown."
        )
    if not getattr(processor, "chat_template", None):
        processor.chat_template = processor.tokenizer.chat_template
    processor.tokenizer.padding_side = "left"  # answers are read off the last position
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _check_processor(folder: Path, processor: Any, family: Any) -> None:
    """InputError where the processor is that of another family: its image tokens would mean nothing to the model."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    own, found = PROCESSOR_MAPPING_NAMES.get(family.model_type), type(processor).__name__
    if own is not None and found not in (own, *family.other_processors):
        raise InputError(
            f"{folder} holds a {family.name} model ({family.model_type}) but a {found}, where {own} belongs to it; "
            f"take processor and tokenizer files of the same checkpoint, for instance from {family.hub_id}."
        )


def check_image_token(folder: Path, processor: Any, token: int) -> None:
    """InputError where a prompt with an image, as this processor writes it, does not hold the config's image token.

    A config.json that says none is given the default of its class by transformers, without a word.
    """
    image = Image.new("RGB", (64, 64), "white")
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    try:
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        ids = tokenize(processor, [prompt], [[image]])["input_ids"]
    except Exception:  # processors raise what they like at a small image; a prompt of the user's shows it
        return
    if not bool((ids == token).any()):
        raise InputError(
            f"{folder / 'config.json'} makes token {token} the image token (image_token_id or image_token_index; where "
            "it says none, transformers takes its default), but this checkpoint's processor writes none into a prompt "
            "with an image: take config.json and the processor of the same checkpoint."
        )


def _pin_image_size(processor: Any, family: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Put `min_pixels` and `max_pixels` into the image processor, as its family does it."""
    from transformers_agci.families import require

    if min_pixels is not None or max_pixels is not None:
        pin = require(family, "image_size", family.image_size)
        pin(processor.image_processor, min_pixels, max_pixels)


def processor_identity(processor: Any) -> dict[str, Any]:
    """What of the processor shapes the numbers: image size and token grid, and the prompt template."""
    return {"pictures": _image_settings(processor), "chat_template_sha256": _template_hash(processor)}


IMAGE_KEYS = (
    "size",
    "crop_size",
    "patch_size",
    "merge_size",
    "min_patches",
    "max_patches",
    "crop_to_patches",
    "image_grid_pinpoints",
    "do_resize",
    "do_center_crop",
    "do_pad",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "do_normalize",
)


def _image_settings(processor: Any) -> dict[str, Any]:
    """What decides the pixels and the token grid."""
    found = processor.image_processor.to_dict()
    settings = {key: found[key] for key in IMAGE_KEYS if found.get(key) is not None}
    return {
        "class": type(processor.image_processor).__name__,
        **{key: _plain(value) for key, value in settings.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or hasattr(value, "keys"):
        return {key: _plain(value[key]) for key in value if value[key] is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else str(value)


def _template_hash(processor: Any) -> str:
    return hashlib.sha256(str(processor.chat_template).encode()).hexdigest()
