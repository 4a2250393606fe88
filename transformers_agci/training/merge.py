"""`agci merge-lora`: an adapter added to its checkpoint, weight by weight, in the checkpoint's own layout.

No model is built: W + scale * B @ A is computed in float32 for each weight that the adapter changes, every other tensor
and file stays byte for byte what it was. So the merged checkpoint loads wherever its base loaded, and no more than one
file of weights is in memory.

peft's merge_and_unload needs the whole model in memory and saves it in the layout of the transformers that runs.
Measured with perf/merge_lora.py (a LLaVA of 1.1 GB in bfloat16, files of at most 0.2 GB, three runs each): peft 1388 to
1432 MB of own memory and 13 s, this module 861 to 906 MB and 15 to 17 s, libraries included; save_pretrained left four
of the base's files behind (processor, tokenizer, chat template). Logits agree to 1e-6 (tests/test_merge_lora.py).
"""

import contextlib
import errno
import itertools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from transformers_agci.errors import InputError
from transformers_agci.inference.checkpoint_files import HUB_FILES, INDEX, check_weights, fingerprint
from transformers_agci.inference.progress import Progress
from transformers_agci.storage import manifest
from transformers_agci.storage.folder import committed_folder, damaged_file, file_sizes, unfinished_folder
from transformers_agci.storage.interruption import interrupted_between_pieces
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.settings import check_same_settings
from transformers_agci.training.adapter import Adapter, Change, read_adapter
from transformers_agci.training.checks import Checkpoint, CheckReport, read_checkpoint
from transformers_agci.training.encoding import template_for
from transformers_agci.training.provenance import check_same_family, lambda_warning
from transformers_agci.training.recipe_keys import MergeRecipe

MERGED = "merging.manifest.json"
GB = 10**9  # bytes, as transformers counts them
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Weight:
    """A tensor of the base checkpoint; `dtype` is the one it is written in, as safetensors spells it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    change: Change | None

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for side in self.shape:
            count *= side
        return count * BYTES[self.dtype]


@dataclass(frozen=True)
class Merge:
    """A merging recipe whose parts fit together."""

    checkpoint: Checkpoint
    adapter: Adapter
    weights: list[Weight]
    other_files: list[Path]
    target: Path
    file_size: float  # bytes

    @property
    def size(self) -> int:
        """Bytes that will be written, the headers of the weight files roughly."""
        return sum(weight.size for weight in self.weights) + sum(file.stat().st_size for file in self.other_files)

    @property
    def changed(self) -> int:
        """How many weights the adapter changes."""
        return sum(weight.change is not None for weight in self.weights)

    def settings(self) -> dict[str, Any]:
        """What makes two merged checkpoints the same."""
        return {
            "base_sha256": fingerprint(self.checkpoint.folder),
            "adapter_sha256": self.adapter.sha256,
            "lambda": self.checkpoint.lam,
            "export_size": self.file_size,
        }


def check_merge(recipe: MergeRecipe, report: CheckReport) -> Merge:
    """Everything that can be known before the first weight is written; raises InputError where it cannot work."""
    if recipe.adapter_name_or_path is None:
        raise InputError(
            f"{recipe.source}: adapter_name_or_path is missing, and without one there is nothing to "
            "merge; give the output_dir of the training."
        )
    checkpoint = read_checkpoint(recipe)
    if recipe.template is not None:
        template_for(recipe.template, checkpoint.model_type)
    adapter = read_adapter(Path(recipe.adapter_name_or_path))
    target = Path(recipe.export_dir)
    weights = _weights(checkpoint, adapter)
    check_same_family(checkpoint, adapter.folder, adapter.base)
    report.warnings += lambda_warning(checkpoint, adapter.folder, adapter.base)
    merge = Merge(checkpoint, adapter, weights, _other_files(checkpoint.folder), target, recipe.export_size * GB)
    if target.resolve() == checkpoint.folder.resolve():
        raise InputError(f"export_dir {target} is the folder of the base checkpoint; give another one.")
    if not is_finished(merge):
        _check_room(merge)
    return merge


def is_finished(merge: Merge) -> bool:
    """Whether the merged checkpoint is there already, made of the same parts and undamaged.

    Raises InputError that says what is there instead; False where there is nothing.
    """
    target, remedy = merge.target, "give another export_dir, or remove it"
    if not (target / MERGED).exists():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"export_dir {target} exists and is not empty; {remedy}.")
        return False
    found = read_json_object(target / MERGED, remedy)
    there, sizes = found.get("settings"), found.get("files", {})
    if not isinstance(there, dict) or not isinstance(sizes, dict):
        raise InputError(f"{target / MERGED} is not a manifest of ours; {remedy}.")
    check_same_settings(
        f"export_dir {target} holds a checkpoint merged", there, merge.settings(), f"{remedy.capitalize()}."
    )
    damage = damaged_file(target, sizes)
    if damage is not None:
        raise InputError(f"export_dir {target} holds this merged checkpoint, but {damage}; {remedy}.")
    return True


def _check_room(merge: Merge) -> None:
    there = next(folder for folder in (merge.target, *merge.target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free + sum(
        file.stat().st_size for file in unfinished_folder(merge.target).glob("*")
    )
    if free < merge.size:
        raise InputError(
            f"export_dir {merge.target} needs {_gb(merge.size)} GB, but only {_gb(free)} GB are free "
            "there; make room or give another folder."
        )


def _gb(size: float) -> str:
    return f"{size / GB:.2f}" if size < 100 * GB else f"{size / GB:.0f}"


def _other_files(folder: Path) -> list[Path]:
    """What a checkpoint holds beside its weights: config, tokenizer, processor, chat template, licence."""
    patterns = [pattern for pattern in HUB_FILES if pattern != "*.safetensors"] + ["LICENSE*", "NOTICE*"]
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in (INDEX, MERGED))


def _weights(checkpoint: Checkpoint, adapter: Adapter) -> list[Weight]:
    """Every tensor of the base with the change it gets; InputError where the adapter is another model's."""
    tensors = list(_headers(checkpoint.folder))
    changes = adapter.match({name: shape for _, name, shape, _ in tensors}, checkpoint)
    computed = _computed_dtype(checkpoint.config)
    for file, name, _, dtype in tensors:
        if name in changes and dtype not in DTYPES:
            raise InputError(
                f"{file} holds {name} as {dtype}, and adapters are not merged into quantized checkpoints; "
                "name the model they were made of."
            )
    return [
        Weight(name, file, shape, _wider(dtype, computed) if name in changes else dtype, changes.get(name))
        for file, name, shape, dtype in tensors
    ]


def _headers(folder: Path) -> Iterator[tuple[Path, str, tuple[int, ...], str]]:
    for file in check_weights(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    if part.get_dtype() not in BYTES:
                        raise InputError(
                            f"{file} holds {name} as {part.get_dtype()}, and adapters are not merged into "
                            f"quantized checkpoints; dtypes that are known: {', '.join(BYTES)}."
                        )
                    yield file, name, tuple(part.get_shape()), part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is not a whole safetensors file ({error}).") from error


def _computed_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype in which the model computes, which may be wider than the stored one."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    return names.get(str(config.get("dtype", config.get("torch_dtype"))))


def _wider(stored: str, computed: str | None) -> str:
    return computed if computed is not None and BYTES[computed] > BYTES[stored] else stored


# --- writing -------------------------------------------------------------------------------------------------------


def write(merge: Merge) -> bool:
    """Write the merged checkpoint, which appears as a whole; False where it is there already.

    Raises InputError where something else stands there, and where the disk is full or not writable; nothing is left
    behind.
    """
    try:
        with committed_folder(merge.target, "merging into", is_finished=lambda _: is_finished(merge)) as made:
            if made is None:
                return False
            _fill(merge, made)
    except (OSError, SafetensorError) as error:
        raise InputError(_why_not(merge, error)) from error
    return True


def _fill(merge: Merge, made: Path) -> None:
    started = manifest.now()
    for file in merge.other_files:
        shutil.copy(file, made / file.name)
    _write_weights(merge, made)
    content = {
        "settings": merge.settings(),
        "base": str(merge.checkpoint.folder),
        "adapter": str(merge.adapter.folder),
        "changed_weights": merge.changed,
        "files": file_sizes(made, "*.safetensors", INDEX),
        "started": started,
        **manifest.environment(),
    }
    write_json(made / MERGED, content)


def _why_not(merge: Merge, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if full:
        return (
            f"The disk of export_dir {merge.target} became full while the merged checkpoint ({_gb(merge.size)} GB) "
            "was written; what had been written was removed: make room or give another folder."
        )
    return f"export_dir {merge.target} could not be written ({' '.join(str(error).split())})."


def _write_weights(merge: Merge, folder: Path) -> None:
    groups = list(_files_of(merge))
    bar = Progress(len(merge.weights), unit="tensor")
    index: dict[str, str] = {}
    with contextlib.closing(bar), interrupted_between_pieces() as check_interrupted:
        for number, group in enumerate(groups, 1):
            name = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {}
            for weight_name, tensor in _tensors(group):
                tensors[weight_name] = tensor
                bar.add(1)
                check_interrupted()
            save_file(tensors, folder / name, metadata={"format": "pt"})
            index |= {weight.name: name for weight in group}
            check_interrupted()
    if len(groups) > 1:
        total = sum(weight.size for weight in merge.weights)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_json(folder / INDEX, content)


def _files_of(merge: Merge) -> Iterator[list[Weight]]:
    """The weights in the base's order, as many per file as fit."""
    group: list[Weight] = []
    for weight in merge.weights:
        if group and sum(other.size for other in group) + weight.size > merge.file_size:
            yield group
            group = []
        group.append(weight)
    yield group


def _tensors(group: list[Weight]) -> Iterator[tuple[str, torch.Tensor]]:
    for file, weights in itertools.groupby(group, key=lambda weight: weight.file):
        with safe_open(file, framework="pt") as opened:
            for weight in weights:
                tensor = opened.get_tensor(weight.name)
                if weight.change is not None:
                    merged = (tensor.float() + weight.change.delta()).to(DTYPES[weight.dtype])
                    if not bool(merged.isfinite().all()):
                        raise InputError(
                            f"Merging makes {weight.name} infinite or not a number: the adapter or the "
                            "base holds such values, or they are too large for the base's "
                            f"{weight.dtype}; nothing was written."
                        )
                    tensor = merged
                yield weight.name, tensor.contiguous()
