"""The tensors of a checkpoint by their values, to hold a loaded model's against them, whatever a version calls them."""

from pathlib import Path
from typing import Any

import torch


def vision_weights(vlm: Any) -> dict[str, torch.Tensor]:
    """The floating-point weights of what sees the image, by name."""
    return {
        key: weight
        for key, weight in vlm.named_parameters()
        if not key.startswith("language_model.") and "audio" not in key and weight.is_floating_point()
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

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._by_shape: dict[tuple[int, ...], list[Any]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened: Any = safe_open(file, framework="pt")
            for key in opened.keys():  # noqa: SIM118 - no mapping
                entry = opened.get_slice(key)
                self._by_shape.setdefault(tuple(entry.get_shape()), []).append(entry)

    def holds(self, weight: torch.Tensor) -> bool:
        """Whether one of them has this weight's shape and first values."""
        if weight.is_meta:  # offloaded: there is nothing to compare, and nothing that was made up
            return True
        mine = _head(weight, self.SAMPLE).cpu()
        return any(
            torch.equal(_head(entry, self.SAMPLE).to(mine.dtype), mine)
            for entry in self._by_shape.get(tuple(weight.shape), ())
        )


def _head(tensor: Any, count: int) -> torch.Tensor:
    """Up to `count` first values of a tensor or of a stored one, of which only the first row is read."""
    has_rows = len(getattr(tensor, "shape", None) or tensor.get_shape())
    first: torch.Tensor = tensor[:1] if has_rows else tensor[...]
    return first.flatten()[:count]
