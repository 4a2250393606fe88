"""A second folder of a checkpoint whose config.json can be another one, while the weights lie on disk once."""

import errno
import os
import shutil
from pathlib import Path

from transformers_agci.errors import InputError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def copy_beside(source: Path, target: Path) -> tuple[int, int]:
    """Make `target` from the files of the folder `source`; returns how many weight files were linked and copied.

    Weights are hard links, or copies where `target` is on another file system; everything else is copied. Folders
    within `source` are left out. `target` appears whole or not at all.

    Raises:
        InputError: `target` exists already, or cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} exists already; give a folder that is yet to be made, or remove it.")
    unfinished = target.with_name(f".{target.name}.unfinished")
    linked = copied = 0
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            if not file.is_file() or file.name.endswith((".bak", ".lock")):
                continue
            if file.suffix not in WEIGHTS:
                shutil.copy(file, unfinished)
            elif _linked(file.resolve(), unfinished / file.name):  # the hub's cache holds links to its files
                linked += 1
            else:
                shutil.copy(file, unfinished)
                copied += 1
        unfinished.rename(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return linked, copied


def _linked(file: Path, link: Path) -> bool:
    """Whether the hard link could be made; some file systems have none."""
    try:
        os.link(file, link)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES):
            return False
        raise
    return True
