"""A LoRA adapter as peft saves it: read without peft, and matched with the weights of a checkpoint."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.inference.checkpoint_files import ADAPTER
from transformers_agci.training.checks import Checkpoint
from transformers_agci.training.outputs import ADAPTER_WEIGHTS

# Settings under which an adapter is more, or something else, than W + scale * B @ A.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "lora_bias": (False, None),
    "exclude_modules": (None,),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
}
LAYER = re.compile(r"(?:^|\.)((?:layers|blocks)\.\d+\..+)$")
TOWERS = ("visual", "vision_tower", "vision_model", "audio_tower", "multi_modal_projector")


@dataclass(frozen=True)
class Change:
    """What an adapter adds to one weight [out, in]."""

    layer: str  # the adapted module, as peft names it
    file: Path
    down: str  # key of A, [rank, in]
    up: str  # key of B, [out, rank]
    shape: tuple[int, int]  # out, in
    scale: float

    def delta(self) -> torch.Tensor:
        """scale * B @ A, float32, [out, in]."""
        with safe_open(self.file, framework="pt") as opened:
            down, up = opened.get_tensor(self.down).float(), opened.get_tensor(self.up).float()
        return self.scale * (up @ down)


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA adapter; `base` is the model it says it was trained on."""

    folder: Path
    base: str | None
    changes: list[Change]
    sha256: str

    def match(self, shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> dict[str, Change]:
        """Weight name -> change. Every adapted layer must be one weight of the language model, of the same shape.

        The layers' names are compared from `layers.N` on: what stands before it depends on the version of transformers
        that saved the checkpoint.
        """
        weights = {_layer(name): name for name in shapes if name.endswith(".weight") and _is_of_decoder(name)}
        matched = {}
        for change in self.changes:
            name = weights.get(f"{_layer(change.layer)}.weight")
            if name is None or not _is_of_decoder(change.layer):
                raise self._other_model(checkpoint, f"it changes {change.layer}, which the checkpoint does not have")
            if tuple(shapes[name]) != change.shape:
                raise self._other_model(
                    checkpoint,
                    f"it changes {change.layer} as a weight of {_by(change.shape)}, "
                    f"which is {_by(shapes[name])} in the checkpoint",
                )
            matched[name] = change
        return matched

    def _other_model(self, checkpoint: Checkpoint, what: str) -> InputError:
        family = SUPPORTED_FAMILIES[checkpoint.model_type].name
        return InputError(
            f"The adapter {self.folder} was not trained on {checkpoint.folder} ({family}): {what}. It "
            f"says that it belongs to {self.base or 'no model'}."
        )


def _layer(name: str) -> str:
    found = LAYER.search(name)
    return found[1] if found else name


def _is_of_decoder(name: str) -> bool:
    return not set(name.split(".")) & set(TOWERS)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`; InputError where there is none, or one that is not plain LoRA."""
    path, weights = folder / ADAPTER, folder / ADAPTER_WEIGHTS
    if not folder.is_dir():
        raise InputError(
            f"There is no adapter folder {folder}; give the output_dir of the training as adapter_name_or_path."
        )
    if not path.is_file() or not weights.is_file():
        lacking = path.name if not path.is_file() else weights.name
        raise InputError(f"{folder} holds no {lacking}, so there is no finished adapter in it.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for key, allowed in PLAIN.items():
            if config.get(key, allowed[0]) not in allowed:
                raise InputError(
                    f"{path} says {key} {config[key]!r}, but only plain LoRA adapters are merged here "
                    f"({key} {allowed[0]!r}); merge it with peft."
                )
        changes = _changes(weights, config)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} holds no readable adapter ({type(error).__name__}: {error}).") from error
    digest = hashlib.sha256(path.read_bytes() + weights.read_bytes()).hexdigest()
    return Adapter(folder, config.get("base_model_name_or_path"), changes, digest)


def _changes(weights: Path, config: Mapping[str, Any]) -> list[Change]:
    changes = []
    with safe_open(weights, framework="pt") as opened:
        names = set(opened.keys())
        for down in sorted(name for name in names if name.endswith(".lora_A.weight")):
            module = down.removesuffix(".lora_A.weight")
            up = f"{module}.lora_B.weight"
            rank, inside = opened.get_slice(down).get_shape()
            outside, joined = opened.get_slice(up).get_shape()
            if joined != rank:
                raise ValueError(f"{down} and {up} have the ranks {rank} and {joined}")
            layer = module.removeprefix("base_model.model.")
            changes.append(Change(layer, weights, down, up, (outside, inside), _scale(config, layer, rank)))
            names -= {down, up}
    if names or not changes:
        what = f"more than LoRA matrices, for instance {min(names)}" if names else "no LoRA matrices"
        raise InputError(f"{weights} holds {what}; only plain LoRA adapters are merged here.")
    return changes


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / rank; alpha / sqrt(rank) for rsLoRA."""
    alpha = _of_layer(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_layer(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", layer)), default)
