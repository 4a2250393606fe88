"""A position bias of known size, planted in the decoder of a stock model that lives on as it was.

From every text token, the attention logit of an image token in row r of the grid of cells is lowered by
beta * r / (rows - 1): by nothing at the top, by beta at the bottom. In the probe's 3x3 grid that is beta * r / 2.
Attention among the image tokens, the vision encoder and all weights stay as they are. So the size of the bias is known
exactly, it sits in the decoder, and planting -beta beside beta undoes it.

    with planted_bias(model, 0.5) as plant:
        model.generate(**inputs)        # prefill, batches with padding and decode steps alike
        plant.beta = 0.0                # stock, bit for bit

Two sizes add up when the blocks are nested.
"""

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES, decoder_of, family_of, find_vlm
from transformers_agci.method.forward_call import cache_of_call, forward_call
from transformers_agci.method.image_positions import ImagePositions, image_positions, image_token_mask
from transformers_agci.method.rivals.attention import backend_of

CELL_ROWS = 3  # of the position probe's grid
ATTENTION = ("sdpa", "eager")  # the implementations that take an additive mask [B, 1, queries, keys]
_NUMBERS = itertools.count()  # tell the planted biases of a process apart


@contextlib.contextmanager
def planted_bias(model: nn.Module, beta: float) -> "Iterator[PlantedBias]":
    """Plant a bias of size `beta` (in attention logits, negative: it favours the bottom) within a `with` block.

    Raises:
        InputError: beta is not finite, or the model's family or attention implementation is not served.
    """
    family = family_of(model)
    vlm: Any = find_vlm(model)
    if not family.grid_positions:
        served = ", ".join(name for name, other in SUPPORTED_FAMILIES.items() if other.grid_positions)
        raise InputError(
            "A planted bias needs a model whose position ids say how the image tokens lie "
            f"({served}), but this is a {family.model_type}."
        )
    attention = backend_of(decoder_of(vlm).config)
    if attention not in ATTENTION:
        raise InputError(
            f"A planted bias needs attention with an additive mask ({' or '.join(ATTENTION)}), but this model uses "
            f"{attention}: load it with attn_implementation='sdpa'."
        )
    plant = PlantedBias(vlm, beta)
    try:
        yield plant
    finally:
        plant.remove()


def row_steps(heights: torch.Tensor, cell_rows: int = CELL_ROWS) -> torch.Tensor:
    """How far down the tokens of one image lie, in steps of whole cells: [N] float32, 0 (top row) to 1 (bottom row).

    `heights` [N] are the tokens' rows, from whatever number on.

    >>> row_steps(torch.tensor([7, 7, 8, 8, 9, 9])).tolist()
    [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """
    rows = heights - heights.min()
    cell_row = rows * cell_rows // (rows.max() + 1)
    return cell_row.float() / (cell_rows - 1)


class _Prompt(NamedTuple):
    """What a call with images brings."""

    images: list[ImagePositions]
    text: torch.Tensor  # [B, S] bool: not a token of an image
    steps: torch.Tensor  # [B, S] float32: `row_steps` of the image tokens, 0 at text tokens


class _Masks(NamedTuple):
    """A layer's mask, held so that no other gets its id, and the same with the bias."""

    stock: torch.Tensor | None
    biased: torch.Tensor


class PlantedBias:
    """The hooks of one planted bias; `beta` may be set between two calls, also on a cache that is there already.

    Where the image tokens of a prompt lie travels on the cache that holds their keys.
    """

    def __init__(self, vlm: Any, beta: float) -> None:
        self.vlm = vlm
        self.beta = beta
        self._thread = threading.local()
        self._on_cache = f"_planted_bias_{next(_NUMBERS)}"  # attribute of a cache
        self._hooks = [
            # Before a rival shows the decoder a blank image, or moves the image tokens.
            vlm.register_forward_pre_hook(self._before_vlm, with_kwargs=True, prepend=True),
            decoder_of(vlm).register_forward_pre_hook(self._before_decoder, with_kwargs=True, prepend=True),
            *(
                layer.self_attn.register_forward_pre_hook(self._before_attention, with_kwargs=True)
                for layer in decoder_of(vlm).layers
            ),
        ]

    @property
    def beta(self) -> float:
        """By how much the attention logits of the bottom row are lowered."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if not math.isfinite(value):
            raise InputError(f"The planted bias must be a finite number, but is {value}.")
        self._beta = float(value)

    def remove(self) -> None:
        """Take the hooks off: the model is as it was."""
        for hook in self._hooks:
            hook.remove()

    def _before_vlm(self, vlm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the image tokens of the call; a call without images continues a cache, or is text alone."""
        call = forward_call(vlm, args, kwargs)
        self._thread.prompt = None
        if call.has_images:
            mask = image_token_mask(vlm, call)
            steps = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
            self._thread.prompt = _Prompt(image_positions(vlm, family_of(vlm), call, mask), ~mask, steps)

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the rows of the image tokens off their position ids: generate() does not pass the grid on."""
        self._thread.masks = {}
        prompt = getattr(self._thread, "prompt", None)
        if prompt is not None:
            heights = kwargs["position_ids"][-2]  # of time, height, width, with or without text positions before them
            for image in prompt.images:
                place = image.row, image.index(prompt.steps.device)
                prompt.steps[place] = row_steps(heights[place])

    def _before_attention(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the bias to the mask of one attention layer."""
        hidden = args[0] if args else kwargs["hidden_states"]  # [B, queries, D]
        cache, queries = cache_of_call(kwargs), hidden.shape[1]
        prompt = getattr(self._thread, "prompt", None)
        if prompt is not None:
            steps, text = prompt.steps, prompt.text[:, -queries:]  # a replayed prefix leaves the last queries only
            if cache is not None:
                setattr(cache, self._on_cache, steps)
        else:
            steps, text = getattr(cache, self._on_cache, None), None
        if steps is None or self.beta == 0:
            return None
        stock = kwargs.get("attention_mask")
        made = self._thread.masks.get(id(stock))  # the layers of a call that share a mask share what becomes of it
        if made is None:
            mask = _additive(stock, cache, layer, hidden)
            keys = nn.functional.pad(steps, (0, mask.shape[-1] - steps.shape[1])).to(mask)[:, None, None, :]
            lowered = keys if text is None else keys * text[:, None, :, None]
            made = self._thread.masks[id(stock)] = _Masks(stock, mask - self.beta * lowered)
        return args, {**kwargs, "attention_mask": made.biased}


def _additive(mask: torch.Tensor | None, cache: Any, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The layer's attention mask in additive form, [B or 1, 1, queries, keys]."""
    lowest = torch.finfo(hidden.dtype).min
    if mask is None:  # SDPA is then told to be causal, or there is one query that sees everything
        queries, past = hidden.shape[1], cache.get_seq_length(layer.layer_idx) if cache is not None else 0
        return torch.full((queries, past + queries), lowest).triu(past + 1)[None, None].to(hidden)
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, lowest)
    return mask


@contextlib.contextmanager
def vision_windows(model: nn.Module, pixels: int) -> Iterator[None]:
    """Let a Qwen2.5-VL look through vision windows of this many pixels within a `with` block; the weights stay.

    Windows that cut a cell's sub-image make a bias of the encoder: nothing in the decoder causes it.
    """
    visual: Any = getattr(find_vlm(model), "visual", None)
    if getattr(visual, "window_size", None) is None:
        raise InputError(f"{type(model).__name__} has no vision windows: give a Qwen2.5-VL.")
    found = visual.window_size
    visual.window_size = pixels
    try:
        yield
    finally:
        visual.window_size = found
