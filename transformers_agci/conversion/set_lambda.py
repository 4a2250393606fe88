"""Lambda in a checkpoint's config.json: changed in place, or in a second folder that shares the weights on disk.

In place, the file is replaced as a whole and what it was before stays beside it as config.json.bak. A second folder
gets hard links to the weights, copies of everything else, and the other lambda from the start: it appears when all of
that is right.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families import REFUSED_FAMILIES, SUPPORTED_FAMILIES, todays_model_type, unsupported_config
from transformers_agci.inference.checkpoint_files import CONFIG, check_not_original_llava
from transformers_agci.method.lam import LAMBDA_KEY, key_of, served_part
from transformers_agci.storage.atomic import cannot_write, remove_leftovers, write_atomic
from transformers_agci.storage.folder import committed_folder, same_bytes
from transformers_agci.storage.json_file import json_bytes, read_json_object
from transformers_agci.storage.lock import exclusive_lock

BACKUP = f"{CONFIG}.bak"
LOCK_SECONDS = 30.0  # that another process may take for its own change
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES)


@dataclass(frozen=True)
class _Config:
    """A config.json as it is, and as it is to be."""

    path: Path
    found: Mapping[str, Any]
    text: str
    wanted: str

    @property
    def change(self) -> str:
        before, after = (_shown(key_of(config)) for config in (self.found, json.loads(self.wanted)))
        return f"{before} -> {after}"


def set_lambda(checkpoint: Path, lam: float | None) -> list[str]:
    """Set the key of a checkpoint, or remove it where `lam` is None; returns what to tell the user.

    Args:
        checkpoint: the folder, or its config.json.

    Raises:
        InputError: no config.json, not JSON, not a supported family, not writable, or held by another process.
    """
    path = _config_path(checkpoint)
    _read(path, lam)  # what is wrong with it is said before anything is written beside it
    try:
        with exclusive_lock(path, "changing", wait=LOCK_SECONDS):
            return _change(_read(path, lam))
    except OSError as error:
        raise InputError(f"{path} cannot be changed ({error.strerror or error}).") from error


def copy_with_lambda(source: Path, target: Path, lam: float | None) -> list[str]:
    """Make the folder `target` from the checkpoint in `source`, with the key set or removed there only.

    Folders within `source` are left out. A `target` that is what this call would make is left as it is.

    Raises:
        InputError: as `set_lambda`, or `target` holds something else or cannot be written.
    """
    config = _read(_config_path(source), lam)
    source = config.path.parent
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is the checkpoint itself; give a folder that is yet to be made.")
    files = [file for file in sorted(source.iterdir()) if _belongs(file)]
    try:
        with committed_folder(
            target, "copying a checkpoint to", is_finished=lambda there: _check_copy(there, config, files)
        ) as made:
            if made is None:
                return [f"{target} is already finished: a copy of {source}, {LAMBDA_KEY}: {config.change}."]
            linked, copied = _fill(made, files)
            write_atomic(made / CONFIG, config.wanted.encode(), mode_of=config.path)
    except OSError as error:
        raise cannot_write(target, error) from error
    return [
        f"{target / CONFIG}: {LAMBDA_KEY}: {config.change}",
        f"{target}: weight files: {linked} linked to those of {source}, {copied} copied. Do not write into "
        "either folder; train and merge into others.",
    ]


def _change(config: _Config) -> list[str]:
    path, backup = config.path, config.path.with_name(BACKUP)
    remove_leftovers(path, backup)
    if config.wanted == config.text:
        return [f"{path}: {LAMBDA_KEY} is {config.change.partition(' ')[0]} already; nothing was changed."]
    if not os.access(path, os.W_OK):
        raise InputError(f"{path} is write-protected; copy the checkpoint or change its permissions.")
    write_atomic(backup, config.text.encode(), mode_of=path)
    write_atomic(path, config.wanted.encode(), mode_of=path)
    return [f"{path}: {LAMBDA_KEY}: {config.change}", f"before: {backup}"]


# --- config.json -----------------------------------------------------------------------------------------------------


def _config_path(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.name == CONFIG else checkpoint / CONFIG


def _read(path: Path, lam: float | None) -> _Config:
    """The config of a supported family, and its text with the other lambda."""
    if not path.is_file():
        raise InputError(f"There is no {path}; give the folder of a checkpoint on this machine.")
    found = read_json_object(path, "it is not a model's config")
    text = path.read_text(encoding="utf-8")
    check_not_original_llava(path.parent, found)
    model_type = todays_model_type(found.get("model_type"))
    if model_type in REFUSED_FAMILIES or (model_type not in SUPPORTED_FAMILIES and served_part(found) is None):
        raise unsupported_config(path, found.get("model_type"))
    config = _without_key(found)
    if lam is not None:
        config[LAMBDA_KEY] = lam
    wanted = text if config == found else json_bytes(config, indent=_indent(text), ascii_only=False).decode()
    return _Config(path, found, text, wanted)


def _without_key(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the key, also in the parts where it is read: the text part, where some versions of transformers put a
    copy and then prefer it, and the vlm's part of a larger model."""
    without = {name: value for name, value in config.items() if name != LAMBDA_KEY}
    for part in filter(None, ("text_config", served_part(config))):
        if isinstance(without.get(part), dict):
            without[part] = _without_key(without[part])
    return without


def _indent(text: str) -> int | None:
    """The file's own indentation, so that a diff shows one line; None for a file in one line."""
    lines = text.splitlines()[1:2]
    return len(lines[0]) - len(lines[0].lstrip()) if lines else None


# --- the second folder -----------------------------------------------------------------------------------------------


def _belongs(file: Path) -> bool:
    """Whether a file is copied; config.json is rewritten, and locks and what is half-written stay behind."""
    return file.is_file() and file.name != CONFIG and not file.name.endswith((".bak", ".lock", ".new"))


def _fill(folder: Path, files: list[Path]) -> tuple[int, int]:
    """Weights as hard links, or as copies where the file system has none; how many were linked and copied."""
    linked = copied = 0
    for file in files:
        if file.suffix not in WEIGHTS:
            shutil.copy(file, folder / file.name)
        elif _linked(file.resolve(), folder / file.name):  # the hub's cache holds links to its files
            linked += 1
        else:
            shutil.copy(file, folder / file.name)
            copied += 1
    return linked, copied


def _linked(file: Path, link: Path) -> bool:
    """Whether the hard link could be made; some file systems have none."""
    try:
        os.link(file, link)
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True


def _check_copy(target: Path, config: _Config, files: list[Path]) -> bool:
    """True for the finished copy; InputError that says in what a folder differs from it."""
    source, remedy = config.path.parent, "give a folder that is yet to be made, or remove it"
    if not (target / CONFIG).is_file():
        raise InputError(f"{target} exists already and holds no {CONFIG}; {remedy}.")
    there, wanted = read_json_object(target / CONFIG, remedy), json.loads(config.wanted)
    if there != wanted:
        if _without_key(there) == _without_key(wanted):
            theirs, ours = (key_of(found) for found in (there, wanted))
            raise InputError(
                f"{target} exists already, as a copy with lambda {_shown(theirs)} instead of {_shown(ours)}; {remedy}."
            )
        raise InputError(f"{target} exists already, with another {CONFIG} than {source}; {remedy}.")
    for file in files:
        if not same_bytes(file, target / file.name):
            what = "another" if (target / file.name).exists() else "no"
            raise InputError(f"{target} exists already, with {what} {file.name} than {source}; {remedy}.")
    return True


def _shown(lam: Any) -> str:
    return "absent" if lam is None else json.dumps(lam)
