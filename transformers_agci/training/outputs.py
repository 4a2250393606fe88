"""The folder of a training run: the manifest that says how the adapter came about, and where a killed run goes on.

settings   compared when a run goes on: model, data, recipe, lambda; another one on the same folder is refused
notes      recorded, not compared: paths, what was ignored
runs       one entry per process life: versions, hardware, steps, peak memory
finished   whether the adapter in the folder is the last step's
"""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import cannot_write, remove_leftovers
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.storage.settings import as_stored, check_same_settings

MANIFEST = "training.manifest.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Without one of these a checkpoint was torn while it was written; Trainer writes the state last.
CHECKPOINT_FILES = (ADAPTER_WEIGHTS, "optimizer.pt", "scheduler.pt", "trainer_state.json")
REMEDY = "give overwrite_output_dir=true to start over"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """No other training writes `folder` meanwhile; InputError if one does, or if it cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder, "training into"))
        except OSError as error:
            raise cannot_write(folder, error, "give another output_dir, or make room there") from error
        yield


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the run in `folder`, or None; InputError where it is damaged."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    found = read_json_object(path, REMEDY)
    kinds: dict[str, type] = {"settings": dict, "notes": dict, "runs": list, "finished": bool}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise InputError(f"{path} is not a manifest of ours ({key!r} is missing or of the wrong kind); {REMEDY}.")
    return found


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace the manifest as a whole."""
    write_json(folder / MANIFEST, content)


def open_output(folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], overwrite: bool) -> bool:
    """Begin a run in `folder` or go on with the one there; True: it is finished already.

    Only for the holder of the folder's lock. Raises InputError where another run, or something that is not ours,
    stands there.
    """
    found = None if overwrite else read_manifest(folder)
    try:
        if overwrite:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder / MANIFEST)
        if found is None:
            _check_ours(folder)
            found = {"settings": as_stored(settings), "notes": {}, "runs": [], "finished": False}
        check_same_settings(
            f"{folder} holds a training", found["settings"], settings, f"{REMEDY.capitalize()}, or another output_dir."
        )
        finished = bool(found["finished"]) and _damage_of_weights(folder / ADAPTER_WEIGHTS) is None
        write_manifest(folder, found | {"notes": dict(notes), "finished": finished})
    except OSError as error:
        raise cannot_write(folder, error, "give another output_dir, or make room there") from error
    return finished


def add_run(folder: Path, run: Mapping[str, Any], finished: bool) -> None:
    """Append what a process did."""
    found = read_manifest(folder)
    if found is None:
        raise InputError(f"{folder / MANIFEST} was removed while the training ran; what it holds has no manifest now.")
    write_manifest(folder, found | {"runs": [*found["runs"], dict(run)], "finished": finished})


# --- checkpoints to go on from ---------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """A checkpoint that can be gone on from."""

    path: Path
    holds_last_step: bool  # the training had made all of its steps when this was saved


def last_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read; newer ones that a kill or a disk damaged are removed, and `say` says so.

    Under torchrun one process calls this before the others do.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        found = _read_checkpoint(path)
        if isinstance(found, Checkpoint):
            return found
        say(f"{path} is damaged ({found}); it is removed, and an older one is looked for.")
        shutil.rmtree(path, ignore_errors=True)
    return None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _read_checkpoint(path: Path) -> Checkpoint | str:
    """A checkpoint, or what is wrong with it in a few words."""
    missing = next((name for name in CHECKPOINT_FILES if not (path / name).is_file()), None)
    if missing is not None:
        return f"{missing} is missing"
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "trainer_state.json is not JSON"
    try:
        finished = state["global_step"] >= state["max_steps"] > 0
    except (KeyError, TypeError):
        return "trainer_state.json does not say how many steps were made"
    pickles = [*path.glob("*.pt"), *path.glob("*.pth")]
    damage = _damage_of_weights(path / ADAPTER_WEIGHTS) or next(filter(None, map(_damage_of_zip, pickles)), None)
    return damage or Checkpoint(path, finished)


def _damage_of_weights(path: Path) -> str | None:
    """A safetensors file tells its own length."""
    try:
        with safe_open(path, framework="pt") as opened:
            list(opened.keys())
    except (OSError, SafetensorError):
        return f"{path.name} is not a whole safetensors file"
    return None


def _damage_of_zip(path: Path) -> str | None:
    """torch.save writes zip archives, which carry a checksum of each part; nothing is unpickled here."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
        return f"{path.name} is not a whole archive"
    return None if damaged is None else f"{path.name} holds other bytes than were written"


def _check_ours(folder: Path) -> None:
    """InputError where something else than a training stands."""
    there = sorted(path.name for path in folder.iterdir())
    if there:
        raise InputError(
            f"{folder} holds something that is not a training of ours ({there[0]}); give another "
            "output_dir, or overwrite_output_dir=true if it is an adapter's folder that may go."
        )


def _clear(folder: Path) -> None:
    """Remove an earlier adapter's folder; a folder that holds neither adapter nor checkpoint is left alone."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    known = (folder / MANIFEST, folder / "adapter_config.json", *folder.glob("checkpoint-*"))
    if not any(path.exists() for path in known):
        raise InputError(
            f"overwrite_output_dir: {folder} holds neither an adapter nor checkpoints, so it is not "
            "deleted; give another output_dir."
        )
    shutil.rmtree(folder)
