"""The manifest beside a result file: everything needed to make the file again, and what the runs measured.

settings   compared when a run goes on: another model, lambda, prompt, ... on the same output is refused
notes      told, not compared: where the model lay, where lambda came from, the token grid
rows       how many the input has
blocks     [rows of a block, how many such blocks follow one another], ...
runs       one entry per run: versions, git commit, hardware, rows/s, peak memory, halved blocks
"""

import functools
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError

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


def path_of(result: Path) -> Path:
    from transformers_agci.storage.result_file import beside

    return beside(result, ".manifest.json")


def read(result: Path) -> dict[str, Any] | None:
    """The manifest of a result file, or None."""
    path = path_of(result)
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found["settings"], dict) else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a manifest of ours ({error}); give --overwrite to start anew.") from error


def open_for(result: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], block_sizes: Sequence[int]) -> None:
    """Begin or go on: write the manifest, after comparing it with the one that is there."""
    found = read(result)
    settings = json.loads(json.dumps(settings))  # the form that a file gives back
    if found is None:
        if result.exists() and result.stat().st_size:
            raise InputError(
                f"{result} exists without {path_of(result).name}, so its settings are unknown; give "
                "--overwrite to replace it, or name another answer file."
            )
        found = {"settings": settings, "runs": []}
    else:
        refuse_difference(result, found["settings"], settings)
    runs_of_equal = [[size, len(list(same))] for size, same in itertools.groupby(block_sizes)]
    _write(result, found | {"notes": dict(notes), "rows": sum(block_sizes), "blocks": runs_of_equal})


def block_sizes(content: Mapping[str, Any]) -> list[int]:
    """The number of rows of each block, from a manifest."""
    return [size for size, times in content["blocks"] for _ in range(times)]


def add_run(result: Path, run: Mapping[str, Any]) -> None:
    """Append what a run measured."""
    found = read(result)
    if found is not None:
        _write(result, found | {"runs": [*found.get("runs", []), dict(run)]})


def refuse_difference(result: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """InputError naming every setting that differs."""
    differ = differences(there, here)
    if differ:
        raise InputError(
            f"{result} was made with other settings: {'; '.join(differ)}. Give --overwrite to start anew, "
            "or name another answer file."
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of a run that is there and those of now, each as words."""
    before, now = dict(_flat(there)), dict(_flat(here))
    return [
        f"{key} is {before.get(key, 'not set')!r} there and {now.get(key, 'not set')!r} now"
        for key in sorted(before | now)
        if before.get(key, "not set") != now.get(key, "not set")
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _write(result: Path, content: Mapping[str, Any]) -> None:
    order = ("settings", "notes", "rows", "blocks", "runs")
    replace_file(path_of(result), json.dumps({key: content[key] for key in order}, indent=2).encode() + b"\n")


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader, or a kill, meets the old one or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
