"""Where every tensor of an original LLaVA checkpoint goes, decided from names and shapes before a weight is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from transformers_agci.conversion import layout, processor_files
from transformers_agci.conversion import original as originals
from transformers_agci.conversion.original import Original
from transformers_agci.conversion.shards import Shard, check_index, unread, weight_files
from transformers_agci.errors import InputError

MULTIPLE = 64  # the grown vocabulary is a multiple of it, as in the llava-hf checkpoints
GROWN = (layout.EMBEDDINGS, layout.HEAD)


@dataclass(frozen=True)
class SourceFile:
    """One source file: which of its tensors go where (source name -> name in transformers' layout)."""

    file: Path
    places: Mapping[str, str]


@dataclass
class Plan:
    """What will be written, known before any weight is read."""

    original: Original
    config: dict[str, Any]
    vocabulary: processor_files.Vocabulary
    parts: list[SourceFile]
    dtype: torch.dtype
    size: int  # bytes of all tensors, written
    unused: dict[str, str] = field(default_factory=dict)  # tensor or file of the source -> why it is not used


def make_plan(source: Path, tower: Path | None, dtype: str = "auto") -> Plan:
    """Read names and shapes of everything and decide the place of each tensor; InputError if one has none."""
    original = originals.read_original(source)
    vocabulary = processor_files.read_tokenizer(source, original)
    unused: dict[str, str] = {}
    shapes: dict[str, layout.Shape] = {}
    files = weight_files(source)
    parts = [_place(source, file, layout.RENAMED, shapes, unused) for file in files]
    unused |= dict.fromkeys(unread(source, files), "the index does not name it")
    vision = _vision_config(original, tower, shapes, unused)
    if not any(name.startswith(layout.TOWER) for name in shapes) and tower is not None:
        parts += [_place(tower, file, layout.TOWER_RENAMED, shapes, unused) for file in weight_files(tower)]
    text = originals.text_config(original)
    if original.tied and layout.HEAD in shapes:
        parts = [
            SourceFile(part.file, {name: place for name, place in part.places.items() if place != layout.HEAD})
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


def _vision_config(
    original: Original, tower: Path | None, shapes: Mapping[str, layout.Shape], unused: dict[str, str]
) -> dict[str, Any]:
    """The vision tower's config; InputError where neither the checkpoint nor `tower` holds the tower."""
    source = original.path.parent
    if any(name.startswith(layout.TOWER) for name in shapes):
        if tower is None:
            return originals.tower_config_from(layout.tower_sizes(shapes, source), original)
        unused[f"weights of {tower.name}"] = "the checkpoint holds the vision tower that it was trained with"
    elif tower is None:
        raise InputError(
            f"{source} does not hold its vision tower {original.config['mm_vision_tower']}; download that "
            "model, too, and give its folder with `vision_tower`."
        )
    return originals.tower_config_of(tower)


def _place(
    folder: Path,
    file: Path,
    table: tuple[tuple[str, str], ...],
    shapes: dict[str, layout.Shape],
    unused: dict[str, str],
) -> SourceFile:
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
    return SourceFile(file, places)


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


def _own_dtype(parts: list[SourceFile]) -> torch.dtype:
    """The dtype of the checkpoint's embeddings: the one that the whole result gets."""
    part = next(part for part in parts if layout.EMBEDDINGS in part.places.values())
    name = next(name for name, place in part.places.items() if place == layout.EMBEDDINGS)
    dtype = Shard(part.file).tensor(name).dtype
    if not dtype.is_floating_point:
        raise InputError(f"{part.file} holds {name} as {dtype}; quantized checkpoints are not converted.")
    return dtype
