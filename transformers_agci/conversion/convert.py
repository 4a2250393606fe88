"""From a downloaded LLaVA checkpoint to a folder that transformers loads, one weight file in memory at a time.

Everything is planned from names and shapes before a weight is read: every tensor of the source has its place, or is
named with the reason why it has none, and every place is filled. Then each source file becomes one output file. The
folder gets its name as the last step; until then it is a hidden sibling that the next run clears away.
"""

import errno
import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from transformers_agci import __version__
from transformers_agci.conversion import layout, processor_files
from transformers_agci.conversion import original as originals
from transformers_agci.conversion.original import Original
from transformers_agci.conversion.shards import Shard, check_index, error_line, unread, weight_files
from transformers_agci.errors import InputError
from transformers_agci.inference.checkpoint_files import CONFIG, INDEX
from transformers_agci.inference.load import one_thread_on_cpu
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.folder import committed_folder, damaged_file, file_sizes
from transformers_agci.storage.interruption import interrupted_between_pieces
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.settings import check_same_settings

MANIFEST = "conversion_manifest.json"
MULTIPLE = 64  # the grown vocabulary is a multiple of it, as in the llava-hf checkpoints
GROWN = (layout.EMBEDDINGS, layout.HEAD)


@dataclass(frozen=True)
class Part:
    """One source file: which of its tensors go where (source name -> name in transformers' layout)."""

    file: Path
    places: Mapping[str, str]


@dataclass
class Plan:
    """What will be written, known before any weight is read."""

    original: Original
    config: dict[str, Any]
    vocabulary: processor_files.Vocabulary
    parts: list[Part]
    dtype: torch.dtype
    size: int  # bytes of all tensors, written
    unused: dict[str, str] = field(default_factory=dict)  # tensor or file of the source -> why it is not used


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
            f"--overwrite replaces only what an earlier conversion wrote, and {output} holds no {MANIFEST}; name "
            "another folder."
        )


def _is_finished(output: Path, plan: Plan) -> bool:
    """True if `output` was converted from these files in this way; InputError that says what differs."""
    remedy = "Name another folder, or give --overwrite to replace it."
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


# --- planning ------------------------------------------------------------------------------------------------------


def make_plan(source: Path, tower: Path | None, dtype: str = "auto") -> Plan:
    """Read names and shapes of everything and decide the place of each tensor; InputError if one has none."""
    original = originals.read_original(source)
    vocabulary = processor_files.read_tokenizer(source, original)
    unused: dict[str, str] = {}
    shapes: dict[str, layout.Shape] = {}
    files = weight_files(source)
    parts = [_place(source, file, layout.RENAMED, shapes, unused) for file in files]
    unused |= dict.fromkeys(unread(source, files), "the index does not name it")
    if any(name.startswith(layout.TOWER) for name in shapes):
        if tower is None:
            sizes = layout.tower_sizes(shapes, source)
            vision = originals.tower_config_from(sizes, original)
        else:
            vision = originals.tower_config_of(tower)
            unused[f"weights of {tower.name}"] = "the checkpoint holds the vision tower that it was trained with"
    elif tower is None:
        raise InputError(
            f"{source} does not hold its vision tower {original.config['mm_vision_tower']}; download that "
            "model, too, and give its folder with --vision_tower."
        )
    else:
        vision = originals.tower_config_of(tower)
        parts += [_place(tower, file, layout.TOWER_RENAMED, shapes, unused) for file in weight_files(tower)]
    text = originals.text_config(original)
    if original.tied and layout.HEAD in shapes:
        parts = [
            Part(part.file, {name: place for name, place in part.places.items() if place != layout.HEAD})
            for part in parts
        ]
        unused["lm_head.weight"] = "the config ties it to the embeddings"
        del shapes[layout.HEAD]
    _compare(source, shapes, layout.expected_shapes(text, vision, newline=original.anyres, tied=original.tied))
    rows = int(text["vocab_size"])
    text["vocab_size"] = _grown_rows(rows, vocabulary)
    grown = sum(name in shapes for name in GROWN) * (text["vocab_size"] - rows) * text["hidden_size"]
    parts = [part for part in parts if part.places]
    kept = _own_dtype(parts) if dtype == "auto" else getattr(torch, dtype)
    config = originals.model_config(
        original,
        text,
        vision,
        image_token=vocabulary.image,
        pad_token=vocabulary.pad,
        dtype=str(kept).removeprefix("torch."),
    )
    size = (sum(math.prod(shape) for shape in shapes.values()) + grown) * kept.itemsize
    return Plan(original, config, vocabulary, parts, kept, size, unused)


def _place(
    folder: Path,
    file: Path,
    table: tuple[tuple[str, str], ...],
    shapes: dict[str, layout.Shape],
    unused: dict[str, str],
) -> Part:
    """Where each tensor of a file goes; adds to the shapes found and to what is not used."""
    found = Shard(file).shapes
    check_index(folder, file, set(found))
    places: dict[str, str] = {}
    for name, shape in found.items():
        reason = _reason(name, table)
        place = layout.renamed(name, table)
        if reason is not None:
            unused[name] = reason
        elif place is None:
            raise InputError(
                f"{file} holds {name}, which is no tensor of a LLaVA checkpoint known here; nothing was converted."
            )
        elif place in shapes:
            raise InputError(f"{file} holds {name}, but {place} is filled already; the checkpoint has it twice.")
        else:
            places[name] = place
            shapes[place] = shape
    return Part(file, places)


def _reason(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """Why a known tensor is not used, or None."""
    for ending, reason in layout.BUFFERS.items():
        if name.endswith(ending):
            return reason
    if table is layout.TOWER_RENAMED and name.startswith(layout.TEXT_SIDE):
        return "it belongs to CLIP's text side"
    return None


def _compare(source: Path, found: Mapping[str, layout.Shape], expected: Mapping[str, layout.Shape]) -> None:
    """Every place filled, nothing beyond, all shapes as the configs say."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of {len(expected)} tensors that its config asks for, for "
            f"instance {missing[0]}; the checkpoint is incomplete."
        )
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise InputError(
            f"{source} holds {len(unknown)} tensors that its config has no place for, for instance "
            f"{unknown[0]}; nothing was converted."
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(
                f"{name} has the shape {found[name]} in the weights of {source}, but the config makes it "
                f"{shape}; they do not belong together."
            )


def _grown_rows(rows: int, vocabulary: processor_files.Vocabulary) -> int:
    needed = max(rows, vocabulary.image + 1, vocabulary.pad + 1)
    return -(-needed // MULTIPLE) * MULTIPLE


def _own_dtype(parts: list[Part]) -> torch.dtype:
    """The dtype of the checkpoint's embeddings: the one that the whole result gets."""
    part = next(part for part in parts if layout.EMBEDDINGS in part.places.values())
    name = next(name for name, place in part.places.items() if place == layout.EMBEDDINGS)
    dtype = Shard(part.file).tensor(name).dtype
    if not dtype.is_floating_point:
        raise InputError(f"{part.file} holds {name} as {dtype}; quantized checkpoints are not converted.")
    return dtype


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
            "(pip install 'transformers-agci[eval]' brings all of them)."
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


def _write_part(plan: Plan, part: Part, file: Path, check_interrupted: Callable[[], None]) -> int:
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
            "--dtype bfloat16 or float32."
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
