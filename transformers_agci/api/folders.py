"""Where a run's files go: a folder that the user names and in which a run goes on, or one that goes with the result."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.inference.progress import Say
from transformers_agci.storage.folder import TEMPORARY


class Place(NamedTuple):
    """A folder; `kept` holds it while somebody holds this."""

    folder: Path
    kept: Any = None


def place_of(folder: str | Path | None) -> Place:
    """The folder that was named, or one of its own."""
    if folder is not None:
        return Place(Path(folder))
    kept = tempfile.TemporaryDirectory(prefix=TEMPORARY)
    return Place(Path(kept.name), kept)


def quiet(lines: list[str]) -> Say:
    """A Say that keeps what a command would print."""
    keep: Callable[[str], None] = lines.append
    return keep
