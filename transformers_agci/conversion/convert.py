"""From a downloaded LLaVA checkpoint to a folder that transformers loads, one weight file in memory at a time.

Everything is planned from names and shapes before a weight is read: every tensor of the source has its place, or is
named with the reason why it has none, and every place is filled. Then each source file becomes one output file. The
folder gets its name as the last step; until then it is a hidden sibling that the next run clears away.
"""

import errno
import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from transformers_agci import __version__
from transformers_agci.conversion import processor_files
from transformers_agci.conversion.plan import GROWN, Plan, SourceFile, make_plan
from transformers_agci.conversion.shards import Shard
from transformers_agci.errors import EVERYTHING, InputError, error_line
from transformers_agci.inference.checkpoint_files import CONFIG, INDEX
from transformers_agci.inference.load import one_thread_on_cpu
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.folder import committed_folder, damaged_file, file_sizes
from transformers_agci.storage.interruption import interrupted_between_pieces
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.settings import check_same_settings

MANIFEST = "conversion_manifest.json"


@dataclass(frozen=True)
class Converted:
    """What is in the output, for the user; `written` is False where it was there already."""

    folder: Path
    tensors: int
    files: int
    rows: tuple[int, int]  # of the embeddings, before and after
    unused: Mapping[str, str]
    written: bool


def convert(
    source: Path, output: Path, *, tower: Path | None = None, dtype: str = "auto", overwrite: bool = False
) -> Converted:
    """Convert the original LLaVA checkpoint in `source` into `output`.

    Args:
        source: the folder as downloaded.
        output: the folder to make; one that this call would make is left as it is.
        tower: folder of the CLIP model that is the vision tower, where `source` does not hold it.
        dtype: "auto" keeps the checkpoint's own.
        overwrite: replace `output`, if an earlier conversion wrote it.

    Raises:
        InputError: anything wrong with the source, the tower, the output or the disk, in one sentence.
    """
    one_thread_on_cpu()
    output = output.resolve()
    _check_output(output, overwrite)
    plan = make_plan(source, tower, dtype)
    try:
        with committed_folder(
            output,
            "converting into",
            is_finished=None if overwrite else lambda _: _is_finished(output, plan),
            replace=overwrite,
        ) as made:
            if made is not None:
                _check_space(plan, output.parent)
                _write(plan, tower, made)
    except (OSError, SafetensorError) as error:
        raise _unwritten(output, error) from error
    before = int(plan.original.config["vocab_size"])
    return Converted(
        output,
        sum(len(part.places) for part in plan.parts),
        len(plan.parts),
        (before, plan.config["text_config"]["vocab_size"]),
        plan.unused,
        written=made is not None,
    )


def _check_output(output: Path, overwrite: bool) -> None:
    """InputError, before a checkpoint is read, where something stands that no conversion wrote."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())) and not (output / MANIFEST).exists():
        if not overwrite:
            raise InputError(f"{output} exists already; name another folder.")
        raise InputError(
            f"`overwrite` replaces only what an earlier conversion wrote, and {output} holds no {MANIFEST}; name "
            "another folder."
        )


def _is_finished(output: Path, plan: Plan) -> bool:
    """True if `output` was converted from these files in this way; InputError that says what differs."""
    remedy = "Name another folder, or give `overwrite` to replace it."
    there = read_json_object(output / MANIFEST, remedy)
    settings = {"dtype": plan.config["dtype"], "source": _sources(plan)}
    check_same_settings(
        f"{output} exists already, converted", {key: there.get(key) for key in settings}, settings, remedy
    )
    sizes = there.get("files", {})
    damage = damaged_file(output, sizes) if isinstance(sizes, dict) else f"{MANIFEST} is damaged"
    if damage is not None:
        raise InputError(f"{output} exists already, but {damage}. {remedy}")
    return True


# --- writing -------------------------------------------------------------------------------------------------------


def _check_space(plan: Plan, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < plan.size:
        raise InputError(
            f"The converted checkpoint needs about {plan.size / 1e9:.1f} GB in {folder}, where "
            f"{free / 1e9:.1f} GB are free; make room or name a folder on another disk."
        )


def _unwritten(output: Path, error: Exception) -> InputError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else str(getattr(error, "strerror", None) or error).splitlines()[0]
    return InputError(
        f"{output} could not be written ({reason}); what was begun is removed, the same command starts again."
    )


def _write(plan: Plan, tower: Path | None, folder: Path) -> None:
    """All files of the converted checkpoint, the small ones first, so that they are tried before gigabytes go by."""
    source = plan.original.path.parent
    made = {
        CONFIG: plan.config,
        "generation_config.json": processor_files.generation_config(source, plan.original, plan.vocabulary.pad),
        "preprocessor_config.json": processor_files.image_processor_config(plan.original, plan.config, tower),
        "processor_config.json": processor_files.processor_config(plan.original, plan.config),
        "tokenizer_config.json": processor_files.tokenizer_config(source, plan.original, plan.vocabulary),
    }
    for name, content in made.items():
        write_json(folder / name, content, ascii_only=False)
    plan.vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    write_atomic(folder / "chat_template.jinja", processor_files.chat_template(plan.original).encode())
    _try_loading(folder)
    weight_map = _write_weights(plan, folder)
    write_json(
        folder / MANIFEST,
        {
            "written_by": "agci convert-llava",
            "versions": _versions(),
            "source": _sources(plan),
            "dtype": plan.config["dtype"],
            "embedding_rows": {
                "source": plan.original.config["vocab_size"],
                "written": plan.config["text_config"]["vocab_size"],
                "new_rows": "the mean of the source's rows",
            },
            "tensors": len(weight_map),
            "unused": plan.unused,
            "files": file_sizes(folder, "*.safetensors", INDEX),
        },
        ascii_only=False,
    )


def _try_loading(folder: Path) -> None:
    """transformers makes config and processor from the small files, or the conversion ends here."""
    from transformers import AutoConfig, AutoProcessor

    try:
        AutoConfig.from_pretrained(folder, local_files_only=True)
        AutoProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise InputError(
            f"The processor of LLaVA needs a package that is not installed: {error_line(error)} "
            f"({EVERYTHING} brings all of them)."
        ) from error
    except Exception as error:  # its checks of a config's values raise in many ways
        raise InputError(
            f"transformers refuses what follows from the original config.json ({error_line(error)}); "
            "nothing was converted."
        ) from error


def _write_weights(plan: Plan, folder: Path) -> dict[str, str]:
    """One output file per source file, and the index; returns tensor -> file."""
    weight_map: dict[str, str] = {}
    total = 0
    size = sum(part.file.stat().st_size for part in plan.parts)
    bar = tqdm(total=size, unit="B", unit_scale=True, desc="converting", disable=None, file=sys.stderr)
    with bar, interrupted_between_pieces() as check_interrupted:
        for number, part in enumerate(plan.parts, 1):
            name = f"model-{number:05}-of-{len(plan.parts):05}.safetensors"
            total += _write_part(plan, part, folder / name, check_interrupted)
            weight_map |= dict.fromkeys(part.places.values(), name)
            bar.update(part.file.stat().st_size)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return weight_map


def _write_part(plan: Plan, part: SourceFile, file: Path, check_interrupted: Callable[[], None]) -> int:
    """One output file of one source file; returns the bytes of its tensors."""
    shard = Shard(part.file)
    rows = plan.config["text_config"]["vocab_size"]
    written: dict[str, torch.Tensor] = {}
    for name, place in part.places.items():
        check_interrupted()
        tensor = shard.tensor(name)
        if not tensor.dtype.is_floating_point:
            raise InputError(f"{part.file} holds {name} as {tensor.dtype}; quantized checkpoints are not converted.")
        if place in GROWN:
            tensor = grow(tensor, rows)
        if tensor.untyped_storage().nbytes() != tensor.nbytes:  # safetensors wants each tensor in memory of its own
            tensor = tensor.clone()
        written[place] = _cast(tensor, plan.dtype, name).contiguous()
    save_file(written, file, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in written.values())


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The tensor in another dtype; InputError where float16 cannot hold its values."""
    cast = tensor.to(dtype)
    if cast.dtype != tensor.dtype and bool(tensor.isfinite().all()) and not bool(cast.isfinite().all()):
        raise InputError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, which {dtype} cannot hold; give "
            "`dtype` bfloat16 or float32."
        )
    return cast


def grow(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """[V, D] -> [rows, D]: each new row is the mean of the old ones, so that no new token can be the likeliest.

    The image token's embedding is never seen (the image's stand in its place), the pad token's is masked.

    >>> grow(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 3).tolist()
    [[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]]
    """
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _sources(plan: Plan) -> dict[str, Any]:
    """Size and hash of the files that the conversion is made from: weights, config and tokenizer."""
    source = plan.original.path.parent
    files = [*(part.file for part in plan.parts), plan.original.path, source / processor_files.TOKENIZER]
    return {f"{file.parent.name}/{file.name}": _identity(file) for file in files}


def _identity(file: Path) -> dict[str, Any]:
    with file.open("rb") as data:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(data, "sha256").hexdigest()}


def _versions() -> dict[str, str]:
    import safetensors
    import tokenizers
    import transformers

    return {
        "transformers-agci": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "tokenizers": tokenizers.__version__,
    }
