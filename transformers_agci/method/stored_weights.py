"""The tensors of a checkpoint by their values, to hold a loaded model's against them, whatever a version calls them."""

import math
from pathlib import Path
from typing import Any

import torch

from transformers_agci.families import decoder_of


def vision_weights(vlm: Any) -> dict[str, torch.Tensor]:
    """The floating-point weights of what sees the image, by name."""
    head = getattr(vlm, "lm_head", None)  # of a vlm that makes logits itself, as the thinkers do
    of_text = {id(weight) for part in (decoder_of(vlm), head) if part is not None for weight in part.parameters()}
    return {
        key: weight
        for key, weight in vlm.named_parameters()
        if id(weight) not in of_text and "audio" not in key and weight.is_floating_point()
    }


def checkpoint_folder(vlm: Any) -> Path | None:
    """The folder with safetensors that the model was loaded from; None where there is none any more."""
    where = getattr(vlm.config, "_name_or_path", "")
    if not where:
        return None
    folder = Path(where)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(where, local_files_only=True))
        except Exception:  # the hub's client has many reasons; all mean that there is no folder to compare with
            return None
    return folder if any(folder.glob("*.safetensors")) else None


class StoredTensors:
    """The tensors of a checkpoint, to be found by what they hold."""

    SAMPLE = 64  # values that are compared
    LEAST = 16  # values of a row that tell it from others; of fewer, one row or another has the same by chance

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._by_shape: dict[tuple[int, ...], list[Any]] = {}
        self._rows: dict[tuple[bool, int, int], list[torch.Tensor]] = {}  # is a vector, width, values that are compared
        for file in sorted(folder.glob("*.safetensors")):
            opened: Any = safe_open(file, framework="pt")
            for key in opened.keys():  # noqa: SIM118 - no mapping
                entry = opened.get_slice(key)
                self._by_shape.setdefault(tuple(entry.get_shape()), []).append(entry)

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether one of them has this weight's shape and first values, or a row that is its first row."""
        if weight.is_meta:  # offloaded: there is nothing to compare, and nothing that was made up
            return True
        mine = _head(weight, self.SAMPLE).cpu()
        if any(
            torch.equal(_head(entry, self.SAMPLE).to(mine.dtype), mine)
            for entry in self._by_shape.get(tuple(weight.shape), ())
        ):
            return True
        return weight.ndim > 0 and self._holds_rows(weight)

    def _holds_rows(self, weight: torch.Tensor) -> bool:
        """Versions of transformers keep apart what a checkpoint has in one tensor (query, key and value), and stack
        what it has apart (experts).
        """
        width = _width(tuple(weight.shape))
        if width < self.LEAST:
            return False
        mine = weight.flatten()[: min(width, self.SAMPLE)].cpu()
        stored = self._rows_like(weight.ndim == 1, width, len(mine))
        return any(bool((rows.to(mine.dtype) == mine).all(dim=1).any()) for rows in stored)

    def _rows_like(self, vectors: bool, width: int, count: int) -> list[torch.Tensor]:
        """The rows of this width, or `count` values in a row of any vector."""
        key = (vectors, 0 if vectors else width, count)
        if key not in self._rows:
            fitting = (
                entry
                for shape, entries in self._by_shape.items()
                if (len(shape) == 1 and shape[0] >= count if vectors else len(shape) > 1 and _width(shape) == width)
                for entry in entries
            )
            self._rows[key] = [_rows_of(entry[...], count) for entry in fitting]
        return self._rows[key]


def _rows_of(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """[R, up to `count`] the first values of every row; of a vector, of every piece of that length."""
    if tensor.ndim == 1:
        return tensor.unfold(0, min(count, len(tensor)), 1)
    return tensor.reshape(-1, _width(tuple(tensor.shape)))[:, :count].clone()  # not the whole tensor behind it


def _width(shape: tuple[int, ...]) -> int:
    """The values that make one output: of a convolution [D, C, H, W] all of a filter's, else those of the last axis."""
    return math.prod(shape[1:]) if len(shape) > 3 else shape[-1]


def _head(tensor: Any, count: int) -> torch.Tensor:
    """Up to `count` first values of a tensor or of a stored one, of which only the first row is read."""
    has_rows = len(getattr(tensor, "shape", None) or tensor.get_shape())
    first: torch.Tensor = tensor[:1] if has_rows else tensor[...]
    return first.flatten()[:count]
