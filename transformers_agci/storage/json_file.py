"""JSON on disk: written whole, and read with one sentence for everything that can be wrong with a file."""

import json
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import write_atomic, write_output
from transformers_agci.storage.overlap import refuse_to_replace_rows
from transformers_agci.storage.reading import kind_of, path_text, read_json


def json_bytes(content: Any, *, indent: int | None = None, ascii_only: bool = True) -> bytes:
    """Content as JSON with a newline behind it; one line without `indent`.

    Half a surrogate pair, which UTF-8 cannot hold, is escaped even where `ascii_only` is off.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent).encode() + b"\n"


def write_json(path: Path, content: Any, *, indent: int | None = 2, ascii_only: bool = True) -> None:
    """Write a JSON file, whole or not at all; OSError where that is impossible."""
    write_atomic(path, json_bytes(content, indent=indent, ascii_only=ascii_only))


def write_report(path: Path | str, content: Any, *, indent: int | None = 1) -> None:
    """Write figures to the place that the user named; InputError where that is impossible, or rows lie there."""
    refuse_to_replace_rows(Path(path))
    write_output(Path(path), json_bytes(content, indent=indent))


def read_json_object(path: Path, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what the user can do, as the end of the sentence: "give `overwrite` to start over".

    Raises:
        InputError: the file is missing or unreadable, or holds something else.
    """
    try:
        content = read_json(path, nan=True)
        if not isinstance(content, dict):
            raise InputError(f"{path_text(path)}: the file must hold a JSON object, but holds {kind_of(content)}.")
    except InputError as error:
        raise InputError(f"{str(error).removesuffix('.')}; {remedy}." if remedy else str(error)) from None
    return content
