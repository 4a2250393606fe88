"""What a model asks of token ids and image grids, answered on the host, where they came from.

A GPU is given work far ahead of what it does. Each question that Python asks about a tensor of the device (how many
image tokens? which runs?) waits until the device has done all of it. transformers asks nine such questions per prompt
for the positions of Qwen's tokens, six for the windows of its vision tower, one to compare image tokens with features.
Within `HostValues`, on the instances of one model:

    get_rope_index          runs on the host's copies, its result crosses once
    get_placeholder_mask    compares counts on the host
    the vision tower        is given positions, segments and windows, made by transformers' own functions from the
                            grid on the host; equal grids share them

Of a model over several devices accelerate's hooks move all arguments to each module's device, where Qwen's tower would
read the bounds of segments back four times per layer: within `HostValues` these hooks leave them, and image grids,
where they are.

Copies are found on the tensors themselves (`forward_call.on_host`); a tensor without one is read back, as ever.
"""

import functools
import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from transformers_agci.families import find_vlm
from transformers_agci.method.forward_call import on_host

UTILITIES = "transformers.vision_utils"  # of transformers 5.20 and newer
REMEMBERED = 4  # grids of batches, sizes of images
GRID = "image_grid_thw"
GRIDS, BOUNDS = [GRID, "grid_thw"], ["cu_seqlens", "cu_window_seqlens"]  # arguments of model, tower and its layers


class HostValues:
    """While entered, the model asks the host; `grids_stay`: image grids are not needed on the device."""

    def __init__(self, model: nn.Module) -> None:
        self.vlm: Any = find_vlm(model)
        tower = getattr(self.vlm, "visual", None)
        self._tower = tower if _is_windowed(tower) and find_spec(UTILITIES) is not None else None
        self._model = model
        self._given: dict[Any, dict[str, torch.Tensor]] = {}

    @property
    def grids_stay(self) -> bool:
        return self._tower is not None

    def __enter__(self) -> "HostValues":
        self._found = {}
        for name, make in (("get_rope_index", _rope_index), ("get_placeholder_mask", _placeholder_mask)):
            if hasattr(self.vlm, name):
                self._found[name] = vars(self.vlm).get(name)
                vars(self.vlm)[name] = make(getattr(self.vlm, name), self.vlm)
        self._hook, self._moved_by = None, []
        if self._tower is not None:
            self._moved_by = _stay(self._model, read_on_device=_reads_on_device(self._tower))
            self._hook = self._tower.register_forward_pre_hook(self._give, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name, found in self._found.items():
            if found is None:
                vars(self.vlm).pop(name, None)
            else:
                vars(self.vlm)[name] = found
        if self._hook is not None:
            self._hook.remove()
        for mover, found in self._moved_by:
            mover.skip_keys = found
        self._given.clear()

    def _give(self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any] | None:
        """Before the vision tower: everything that follows from the grid."""
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        pixels = args[0] if args else kwargs["hidden_states"]
        host = on_host(grid).cpu()
        key = (pixels.device, tuple(map(tuple, host.tolist())))
        if key not in self._given:
            while len(self._given) >= REMEMBERED:
                self._given.pop(next(iter(self._given)))
            self._given[key] = _from_grid(tower, host, pixels.device)
        return args, {**kwargs, **self._given[key]}


def host_values(loaded: Any) -> HostValues | None:
    """What is entered for a loaded model: nothing where its inputs are on the host anyway, or where it is off."""
    wanted = loaded.device.type == "cuda" and "host_values" in loaded.quick
    return HostValues(loaded.model) if wanted else None


def _is_windowed(tower: Any) -> bool:
    return all(hasattr(tower, name) for name in ("window_size", "patch_size", "spatial_merge_size"))


def _from_grid(tower: Any, grid: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments that Qwen2.5-VL's tower would work out; bounds of segments stay where they are read: on the host
    but for flash attention, whose kernels read them.
    """
    ask: Any = import_module(UTILITIES)
    window_index, cu_window_seqlens = ask.get_vision_window_index(
        grid,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    read_on = device if _reads_on_device(tower) else grid.device
    return {
        "position_ids": crossing(ask.get_vision_position_ids(grid, tower.spatial_merge_size), device),
        "cu_seqlens": crossing(ask.get_vision_cu_seqlens(grid), read_on),
        "window_index": crossing(window_index, device),
        "cu_window_seqlens": crossing(cu_window_seqlens, read_on),
    }


def _reads_on_device(tower: Any) -> bool:
    """Whether the attention's kernels read the bounds of segments."""
    return "flash" in str(tower.config._attn_implementation)


def _stay(model: nn.Module, read_on_device: bool) -> list[tuple[Any, Any]]:
    """Tell accelerate's hooks what not to move; returns each with the `skip_keys` that it had."""
    kept = GRIDS if read_on_device else [*GRIDS, *BOUNDS]
    found = []
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        for mover in getattr(hook, "hooks", [hook]):  # several in a row, or one
            if hasattr(mover, "skip_keys"):
                before = mover.skip_keys
                found.append((mover, before))
                mover.skip_keys = [*kept, *([before] if isinstance(before, str) else before or ())]
    return found


def crossing(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values on the device, without waiting until they are there."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _rope_index(original: Any, vlm: Any) -> Any:
    @functools.wraps(original)
    def get_rope_index(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        ids = given["input_ids"]
        positions, deltas = original(**{name: _copied(value) for name, value in given.items() if name != "kwargs"})
        return crossing(positions, ids.device), crossing(deltas, ids.device)

    return get_rope_index


def _copied(value: Any) -> Any:
    return on_host(value).cpu() if isinstance(value, torch.Tensor) else value


def _placeholder_mask(original: Any, vlm: Any) -> Any:
    """The model's own masks, compared with the features on the host: here, where the model can do without features
    (Qwen), or by the model itself from the host's ids (LLaVA).
    """
    parameters = inspect.signature(original).parameters
    if "image_features" not in parameters:
        return original
    compares = parameters["image_features"].default is not None

    @functools.wraps(original)
    def get_placeholder_mask(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        ids, features = given.get("input_ids"), given.get("image_features")
        known = on_host(ids)
        if ids is None or features is None or known is ids or given.get("video_features") is not None:
            return original(*args, **kwargs)
        if compares:
            return original(**{**given, "input_ids": known})
        tokens = int((known == vlm.config.image_token_id).sum())
        if tokens * given["inputs_embeds"].shape[-1] != features.numel():
            return original(*args, **kwargs)  # which raises, in transformers' own words
        return original(**{**given, "image_features": None})

    return get_placeholder_mask
