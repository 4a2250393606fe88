"""Floating-point operations: counted by torch, by the closed formula, and how many a second the device can do.

A multiplication and an addition count as two. Attention counts every key for every query, as torch's counter does,
also where a mask makes some of them zero.
"""

import functools
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from machine import peak_memory, timed
from torch.utils.flop_counter import FlopCounterMode

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.last_positions import is_narrowed
from transformers_agci.inference.load import LoadedModel
from transformers_agci.method.forward_call import cache_of_output

TOLERANCE = 0.01  # rotary angles, AGCI's means and other small products that the formula leaves out


class Formula:
    """While entered, adds up the operations of Qwen2.5-VL's forward calls from their shapes alone."""

    def __init__(self, model: Any) -> None:
        self.flops = 0
        self._narrowed, self._prompts = is_narrowed(model), (0, 0)
        owner: Any = find_vlm(model)
        self._text, self._vision = model.config.get_text_config(), model.config.vision_config
        self._hooks: list[Any] = [
            owner.visual.register_forward_pre_hook(self._see_images, with_kwargs=True),
            decoder_of(owner).register_forward_hook(self._see_prompts, with_kwargs=True),
            model.get_output_embeddings().register_forward_hook(self._see_logits),
        ]

    def __enter__(self) -> "Formula":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see_images(self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.flops += sum(vision_flops(self._vision, int(rows), int(cols)) for _, rows, cols in grid.tolist())

    def _see_prompts(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows, length, _ = output.last_hidden_state.shape  # what went in holds what is taken over from another prompt
        cache = cache_of_output(output)
        keys = length if cache is None else cache.get_seq_length()
        self.flops += rows * decoder_flops(self._text, length, keys)
        self._prompts = rows, length

    def _see_logits(self, head: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.flops += 2 * output.numel() * head.in_features
        if self._narrowed:  # the last MLP computes these positions only
            rows, length = self._prompts
            omitted = rows * length - output[..., 0].numel()
            self.flops -= 2 * omitted * 3 * self._text.hidden_size * self._text.intermediate_size


def vision_flops(config: Any, rows: int, cols: int) -> int:
    """One image of rows x cols patches through the tower and its merger."""
    width, patches = config.hidden_size, rows * cols
    merged = width * config.spatial_merge_size**2
    tokens = patches // config.spatial_merge_size**2
    kernel = config.in_channels * config.temporal_patch_size * config.patch_size**2
    dense = 2 * patches * (4 * width**2 + 3 * width * config.intermediate_size)  # of a layer
    full = len(config.fullatt_block_indexes)
    windows = sum(high * wide for high in _cuts(config, rows) for wide in _cuts(config, cols))
    assert windows == patches
    within = sum((high * wide) ** 2 for high in _cuts(config, rows) for wide in _cuts(config, cols))
    attention = 4 * width * (full * patches**2 + (config.depth - full) * within)
    return (
        2 * patches * kernel * width
        + config.depth * dense
        + attention
        + 2 * tokens * merged * (merged + config.out_hidden_size)
    )


def _cuts(config: Any, patches: int) -> list[int]:
    """How the windows divide a side of so many patches."""
    side = config.window_size // config.patch_size
    return [min(side, patches - start) for start in range(0, patches, side)]


def decoder_flops(config: Any, length: int, keys: int) -> int:
    """`length` new tokens of one prompt that see up to `keys` tokens; without the output matrix."""
    width = config.hidden_size
    narrow = width // config.num_attention_heads * config.num_key_value_heads
    dense = 2 * length * (2 * width**2 + 2 * width * narrow + 3 * width * config.intermediate_size)
    return config.num_hidden_layers * (dense + 4 * width * length * keys)


def counter() -> FlopCounterMode:
    """torch's counter, taught the attentions that it does not know."""
    return FlopCounterMode(display=False, custom_mapping=_more_formulas())


def _more_formulas() -> dict[Any, Any]:
    """Of attention: torch's own do not know the CPU's, nor fewer key heads than query heads, nor segments."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:  # shapes [B, heads, S, D]
        rows, heads, length, width = query
        return 2 * rows * heads * length * key[-2] * (width + value[-1])

    def segments(query: Any, key: Any, value: Any, bounds: Any, *_: Any, **__: Any) -> int:  # [S, heads, D]
        return int(4 * (bounds.diff().long() ** 2).sum()) * query.shape[1] * query.shape[2]

    kinds = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    known: dict[Any, Any] = {getattr(torch.ops.aten, f"_scaled_dot_product_{kind}"): attention for kind in kinds}
    if find_spec("torch.nn.attention.varlen") is not None:
        import_module("torch.nn.attention.varlen")  # registers the operator
        segments.__dict__["_get_raw"] = True  # the counter hands it the values of the bounds, not their shape
        operator = getattr(torch.ops.torch_attn, "_varlen_attn", None)
        known |= {} if operator is None else {operator: segments}
    return known


SUSTAINED = {"cuda": 2.0, "cpu": 0.2}  # seconds of matrix products: a GPU's clocks fall within the first


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the device's own matrix product, sustained: the mean over seconds of it."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = torch.randn(2, side, side, device=device).to(dtype)

    def products(count: int) -> None:
        for _ in range(count):
            one @ other

    products(2)
    once = timed(device, lambda: products(2))[1] / 2
    count = max(2, int(SUSTAINED[device.type] / once))
    return 2 * side**3 * count / timed(device, lambda: products(count))[1]


def figures(loaded: LoadedModel, rows: int, took: float, flops: float) -> str:
    """One line for every measurement: rows/s, TFLOP/s, the share of the sustained matrix product, the peak memory."""
    device = loaded.device
    able = matmul_rate(device, loaded.model.dtype)
    return (
        f"{rows / took:.4g} rows/s; {flops / took / 1e12:.4g} TFLOP/s, {100 * flops / took / able:.0f} % of the "
        f"sustained matrix product, which does {able / 1e12:.4g}; peak memory {peak_memory(device)}"
    )
