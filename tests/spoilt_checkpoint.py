"""A copy of a tiny checkpoint to spoil, and the one sentence with which it is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadOptions, load

FAMILY = "llava"


@pytest.fixture
def folder(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny checkpoint that may be spoilt."""
    return Path(shutil.copytree(tiny_checkpoint(FAMILY), tmp_path / "model"))


def refuse(folder: Path | str, message: str, **options: Any) -> str:
    with pytest.raises(InputError, match=message) as error:
        load(LoadOptions(str(folder), **options))
    assert "\n" not in str(error.value)
    return str(error.value)
