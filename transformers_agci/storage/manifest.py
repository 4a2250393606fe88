"""The manifest beside a result file: everything needed to make the file again, and what the runs measured.

settings   compared when a run goes on: another model, lambda, prompt, ... on the same output is refused
notes      recorded, not compared: where the model lay, where lambda came from, the token grid
rows       how many the input has
blocks     [rows of a block, how many such blocks follow one another], ...
runs       one entry per run: versions, git commit, hardware, rows/s, peak memory, halved blocks
"""

import functools
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.result_names import sibling_path
from transformers_agci.storage.settings import as_stored, check_same_settings

PACKAGES = (
    "transformers-agci",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "pillow",
    "numpy",
    "timm",
)
MOST_ROWS = 10**8  # of a result file; the block sizes of more would fill the memory
BEFORE = {"engine": "transformers"}  # settings that older manifests do not have, as they were then
START_OVER = "give `overwrite` to start over, or name another answer file"


def path_of(result: Path) -> Path:
    """Where the manifest of a result file lies."""
    return sibling_path(result, ".manifest.json")


def read(result: Path) -> dict[str, Any] | None:
    """The manifest of a result file, or None where there is none; InputError where it is damaged."""
    path = path_of(result)
    if not path.exists():
        return None
    found = read_json_object(path, START_OVER)
    wrong = next((key for key, is_right in _FORM.items() if not is_right(found.get(key))), None)
    if wrong is not None:
        raise InputError(f'{path} is not a manifest of ours: "{wrong}" is missing or of another kind; {START_OVER}.')
    if sum(size * times for size, times in found["blocks"]) != found["rows"]:
        raise InputError(f'{path} is damaged: the "blocks" do not hold its {found["rows"]} "rows"; {START_OVER}.')
    return found


def refuse_another_kind(result: Path, experiment: str | None) -> None:
    """InputError where the manifest of `result` is not one that this experiment wrote, so that it is never replaced.

    Replaced is what is missing, what is damaged, and what the same experiment wrote; None: of any run.
    """
    path = path_of(result)
    try:
        found = read_json_object(path)
    except InputError:
        return
    settings = found.get("settings")
    if not isinstance(settings, dict):
        return
    there = settings.get("experiment")
    if "rows_files" in found:
        kind = "a built data set"
    elif experiment is not None and isinstance(there, str) and there != experiment:
        kind = f"a {there} run" if there.isprintable() else "another run"
    elif experiment is None and there == "sweep":
        kind = "a sweep run"
    else:
        return
    raise InputError(
        f"{path} is the manifest of {kind}, which {result.name} would share and replace; choose a name with another "
        "beginning, or another folder."
    )


def _is_blocks(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(number) is int and number > 0 for number in pair)
        for pair in value
    )


_FORM: dict[str, Callable[[Any], bool]] = {
    "settings": lambda value: isinstance(value, dict),
    "notes": lambda value: isinstance(value, dict),
    "rows": lambda value: type(value) is int and 0 <= value <= MOST_ROWS,
    "blocks": _is_blocks,
    "runs": lambda value: isinstance(value, list) and all(isinstance(run, dict) for run in value),
}


def open_for(result: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], block_sizes: Sequence[int]) -> None:
    """Begin or go on: write the manifest, after comparing it with the one that is there."""
    refuse_another_kind(result, settings.get("experiment"))
    found = read(result)
    if found is None:
        if result.exists() and result.stat().st_size:
            raise InputError(
                f"{result} exists without {path_of(result).name}, so its settings are unknown; give "
                "`overwrite` to replace it, or name another answer file."
            )
        runs: list[Any] = []
    else:
        there, here = ({**BEFORE, **each} for each in (found["settings"], settings))
        if there["engine"] != here["engine"]:  # nothing else is comparable then
            there, here = ({"engine": each["engine"]} for each in (there, here))
        if there != here and found["rows"] != sum(block_sizes):  # which says more than the hashes of what was asked
            there, here = {"rows": found["rows"], **there}, {"rows": sum(block_sizes), **here}
        check_same_settings(f"{result} was made", there, here, START_OVER.capitalize() + ".")
        settings, runs = found["settings"], found["runs"]
    _write(result, settings, notes, block_sizes, runs)


def block_sizes(content: Mapping[str, Any]) -> list[int]:
    """The number of rows of each block, from a manifest."""
    return [size for size, times in content["blocks"] for _ in range(times)]


def add_run(
    result: Path,
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    notes: Mapping[str, Any],
    sizes: Sequence[int],
) -> None:
    """Append what a run measured. A manifest that was removed in the meantime is rewritten from the rest."""
    found = read(result)
    runs = [*(found["runs"] if found else ()), dict(run)]
    _write(result, found["settings"] if found else settings, found["notes"] if found else notes, sizes, runs)


def _write(
    result: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], sizes: Sequence[int], runs: Sequence[Any]
) -> None:
    runs_of_equal = [[size, len(list(same))] for size, same in itertools.groupby(sizes)]
    content = {
        "settings": as_stored(settings),
        "notes": dict(notes),
        "rows": sum(sizes),
        "blocks": runs_of_equal,
        "runs": list(runs),
    }
    write_json(path_of(result), content)


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, git commit and hardware of this process."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": _git_commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> dict[str, int]:
    """Bytes: the process so far, and the GPUs since the start."""
    import torch

    try:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        peak = {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    except ImportError:  # Windows
        peak = {}
    if torch.cuda.is_available():
        peak["gpu_bytes"] = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return peak


def now() -> str:
    """The time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from, "+" behind it when files differ; None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
