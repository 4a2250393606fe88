"""The folder of a training run: the manifest that says how the adapter came about, and where a killed run goes on.

settings   compared when a run goes on: model, data, recipe, lambda; another one on the same folder is refused
notes      told, not compared: paths, what was ignored
runs       one entry per process life: versions, hardware, steps, peak memory
finished   whether the adapter in the folder is the last step's
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.folder_lock import alone
from transformers_agci.storage.settings import differences

MANIFEST = "training.manifest.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Without one of these a checkpoint was torn while it was written; Trainer writes the state last.
CHECKPOINT_FILES = (ADAPTER_WEIGHTS, "optimizer.pt", "scheduler.pt", "trainer_state.json")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """No other training writes `folder` meanwhile; InputError if one does, or if it cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(folder, "training into"))
        except OSError as error:
            raise InputError(f"output_dir {folder} cannot be written ({error.strerror or error}).") from error
        yield


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the run in `folder`, or None."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found["settings"], dict) and isinstance(found["runs"], list) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a manifest of ours ({error}); give overwrite_output_dir=true to start anew."
        ) from error


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace the manifest as a whole."""
    write_atomic(folder / MANIFEST, json.dumps(content, indent=2).encode() + b"\n")


def open_output(folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], overwrite: bool) -> bool:
    """Begin a run in `folder` or go on with the one there; True: it is finished already.

    Raises InputError where another run, or something that is not ours, stands there.
    """
    settings = json.loads(json.dumps(settings))  # the form that a file gives back
    found = None if overwrite else read_manifest(folder)
    try:
        if overwrite:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if found is None:
            _refuse_foreign(folder)
            found = {"settings": settings, "notes": {}, "runs": [], "finished": False}
        differ = differences(found["settings"], settings)
        if differ:
            raise InputError(
                f"{folder} holds a training with other settings: {'; '.join(differ)}. Give "
                "overwrite_output_dir=true to start anew, or another output_dir."
            )
        write_manifest(folder, found | {"notes": dict(notes)})
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be written ({error.strerror or error}).") from error
    return bool(found["finished"])


def add_run(folder: Path, run: Mapping[str, Any], finished: bool) -> None:
    """Append what a process did."""
    found = read_manifest(folder)
    assert found is not None
    write_manifest(folder, found | {"runs": [*found["runs"], dict(run)], "finished": finished})


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one that a kill tore while it was written is taken away."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((checkpoint / name).is_file() for name in CHECKPOINT_FILES)


def _refuse_foreign(folder: Path) -> None:
    there = sorted(path.name for path in folder.iterdir())
    if there:
        raise InputError(
            f"{folder} holds something that is not a training of ours ({there[0]}); give another "
            "output_dir, or overwrite_output_dir=true if it is an adapter's folder that may go."
        )


def _clear(folder: Path) -> None:
    """Take an earlier adapter's folder away; a folder that holds neither adapter nor checkpoint is left alone."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    known = (folder / MANIFEST, folder / "adapter_config.json", *folder.glob("checkpoint-*"))
    if not any(path.exists() for path in known):
        raise InputError(
            f"overwrite_output_dir: {folder} holds neither an adapter nor checkpoints, so it is not "
            "deleted; give another output_dir."
        )
    shutil.rmtree(folder)
