"""The weight files of a downloaded checkpoint: safetensors, or PyTorch's .bin files.

The original LLaVA-1.5 and OpenAI's CLIP tower come as .bin only, which are pickles. This is the one place of the
repository that opens such a file, by `torch.load(weights_only=True, mmap=True)`: that reader makes tensors and refuses
everything else, and nothing of a tensor is read before it is used.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from transformers_agci.errors import InputError, error_line
from transformers_agci.inference.checkpoint_files import INDEX, indexed_files
from transformers_agci.storage.json_file import read_json_object

BIN_INDEX = "pytorch_model.bin.index.json"
SINGLE = ("model.safetensors", "pytorch_model.bin")


class Shard:
    """One weight file, open: the names in it, their shapes, and the tensors one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._open(path)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{path} cannot be read ({error_line(error)}); it may be incomplete, download it again."
            ) from error
        except Exception as error:  # the restricted unpickler refuses in many ways
            raise InputError(
                f"{path} holds something else than tensors and was not opened; a file of weights that "
                f"asks to run code is not to be trusted ({type(error).__name__})."
            ) from error

    def _open(self, path: Path) -> None:
        self._shapes: dict[str, tuple[int, ...]]
        if path.suffix == ".safetensors":
            self._held: Any = safe_open(path, "pt")
            self._shapes = {name: tuple(self._held.get_slice(name).get_shape()) for name in self._held.keys()}  # noqa: SIM118
            return
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
            raise TypeError("not a table of tensors")
        self._held = held
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._held.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        return self._shapes

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor; of a .bin file its bytes are still on the disk."""
        held = self._held
        return held[name] if isinstance(held, dict) else held.get_tensor(name)


def weight_files(folder: Path) -> list[Path]:
    """The files with the model's weights, in the index's order of names; safetensors where there are both kinds.

    Raises:
        InputError: none, or one of those that the index names is missing.
    """
    for index, single in zip((INDEX, BIN_INDEX), SINGLE, strict=True):
        if (folder / index).exists():
            return indexed_files(folder / index)
        if (folder / single).exists():
            return [folder / single]
    raise InputError(f"{folder} holds no weights: expected are {INDEX}, {SINGLE[0]}, {BIN_INDEX} or {SINGLE[1]}.")


def check_index(folder: Path, file: Path, names: set[str]) -> None:
    """Raises InputError where the index and a file disagree about the tensors that the file holds."""
    index = next((folder / name for name in (INDEX, BIN_INDEX) if (folder / name).exists()), None)
    if index is None or file.name in SINGLE:
        return
    listed = {name for name, place in read_json_object(index)["weight_map"].items() if place == file.name}
    for extra, words in (
        (listed - names, "names tensors that are not in it"),
        (names - listed, "does not name all of its tensors"),
    ):
        if extra:
            raise InputError(
                f"{index.name} and {file} do not belong together: the index {words}, for instance "
                f"{min(extra)}; download both again."
            )


def unread(folder: Path, files: list[Path]) -> list[str]:
    """Names of further weight files in the folder, which the index does not name."""
    found = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return sorted(path.name for path in found if path not in files)
