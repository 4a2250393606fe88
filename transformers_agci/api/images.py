"""Images as a notebook holds them: files, PIL images, encoded bytes; and a list of them as a source of a set."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import elements, path_of
from transformers_agci.errors import InputError, short
from transformers_agci.storage.atomic import cannot_write, write_atomic
from transformers_agci.storage.reading import is_file

IMAGES = "images: files, PIL images or encoded bytes"
NOT_IN_PNG = ("CMYK", "F", "HSV", "LAB", "YCbCr")  # modes of PIL


def encoded(image: Any, where: str) -> bytes:
    """The bytes of an image: of a file, a PIL image or encoded bytes; `where` begins the InputError of another."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return path_of(image).read_bytes()
        except OSError as error:
            raise InputError(f"{where}: {image} cannot be read ({error.strerror}).") from None
    if hasattr(image, "save") and hasattr(image, "mode"):
        file = io.BytesIO()
        as_png = image.convert("RGB") if image.mode in NOT_IN_PNG else image
        as_png.save(file, "PNG")
        return file.getvalue()
    raise InputError(f"{where} must be a file, a PIL image or encoded bytes, but is a {type(image).__name__}.")


def written_source(folder: Path, images: Sequence[Any], captions: Any, overwrite: bool = False) -> Path:
    """The images as files of `folder` with their captions beside them, in the form of datasets' image folders.

    Files that are there already are kept; InputError where it is something else, unless `overwrite`.
    """
    texts = elements("captions", () if captions is None else captions, "texts, one for each image")
    if not images:
        raise InputError("The list of images is empty; give at least one.")
    if len(texts) != len(images):
        given = "none" if captions is None else f"{len(texts)}"
        raise InputError(f"There must be a caption for each of the {len(images)} images, but there are {given}.")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(f"`captions` must be texts, but one is {short(wrong)}.")
    lines = [json.dumps({"file_name": f"{number:06d}", "caption": text}) for number, text in enumerate(texts)]
    try:
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write_new(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines).encode())
        for number, image in enumerate(images):
            _write_new(folder / f"{number:06d}", encoded(image, f"Image {number}"))
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def _write_new(path: Path, content: bytes) -> None:
    if not is_file(path):
        write_atomic(path, content, sync=False)  # the next call compares it
    elif path.read_bytes() != content:
        raise InputError(
            f"{path.parent} holds other images or captions than these: give another `folder`, or `overwrite` to start "
            "over."
        )
