"""The supported model families: one row each.

A row says which `model_type` of config.json it serves and how the image tokens of one forward call divide into
images. A contiguous run of image tokens is one image wherever the prompt puts marks around an image (Qwen, Gemma3n,
InternVL with all its tiles and the thumbnail). LLaVA and LLaVA-NeXT put none: two adjacent images make one run, which
is divided by the known lengths.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from transformers_agci.errors import InputError


@dataclass(frozen=True)
class ForwardCall:
    """What a family may look at to find its images: arguments of the owner's forward, None where not given.

    `encoded` is the image entry of `mm_encoder_outputs`: since transformers 5.18 `generate()` encodes the images
    before the forward call and passes this in place of the pixels.
    """

    input_ids: torch.Tensor | None = None  # [B, S]
    inputs_embeds: torch.Tensor | None = None  # [B, S, D]
    attention_mask: Any = None  # [B, past + S] where stock masks by token
    pixel_values: Any = None
    image_grid_thw: torch.Tensor | None = None  # [images, 3] patches in time, height, width
    image_sizes: Any = None  # [images, 2] height, width in pixels
    encoded: Any = None
    past_key_values: Any = None

    @property
    def has_images(self) -> bool:
        return self.pixel_values is not None or self.encoded is not None


# config, call, number of image tokens -> tokens of each image in order; None: every run is one image.
Lengths = Callable[[Any, ForwardCall, int], Sequence[int] | None]


@dataclass(frozen=True)
class Family:
    """One supported family.

    Attributes:
        model_type: `model_type` in config.json, the key of this table.
        name: the name in tables and of the folder in scripts/.
        hub_id: the checkpoint that the paper evaluates, in transformers' layout.
        image_tokens: image tokens of one 840x840 image, in words.
        lengths: how the tokens of one call divide into images.
        refusal: config -> why this checkpoint cannot be served although its model_type is right, or None.
    """

    model_type: str
    name: str
    hub_id: str
    image_tokens: str
    lengths: Lengths
    refusal: Callable[[Any], str | None] = lambda config: None


def _by_runs(config: Any, call: ForwardCall, total: int) -> None:
    return None


def _by_grid(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    if call.image_grid_thw is None:
        return _encoded_lengths(call)
    merged = config.vision_config.spatial_merge_size**2  # patches per image token
    return (call.image_grid_thw.prod(dim=-1) // merged).tolist()


def _equal_shares(config: Any, call: ForwardCall, total: int) -> Sequence[int]:
    images = len(call.pixel_values if call.encoded is None else call.encoded.pooler_output)
    return [total // images] * images


def _by_anyres(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    if call.image_sizes is None:
        return _encoded_lengths(call)
    sizes = call.image_sizes.tolist() if isinstance(call.image_sizes, torch.Tensor) else call.image_sizes
    return [anyres_tokens(config, int(height), int(width)) for height, width in sizes]


def _encoded_lengths(call: ForwardCall) -> Sequence[int] | None:
    return None if call.encoded is None else [len(features) for features in call.encoded.pooler_output]


def anyres_tokens(config: Any, height: int, width: int) -> int:
    """Image tokens of LLaVA-NeXT for an image of height x width pixels: base, tiles without padding, newlines."""
    layout = anyres_layout(config, height, width)
    return layout.side**2 + layout.rows * (layout.columns + 1)


@dataclass(frozen=True)
class AnyresLayout:
    """LLaVA-NeXT's token grids: the base image side x side, then rows x (columns + 1), the last a newline."""

    side: int
    rows: int
    columns: int


def anyres_layout(config: Any, height: int, width: int) -> AnyresLayout:
    """The grids of an image of height x width pixels: the tiles' grid is cut to the image's aspect ratio."""
    tile = config.vision_config.image_size  # pixels
    side = tile // config.vision_config.patch_size  # tokens
    best_height, best_width = _best_resolution(config.image_grid_pinpoints, height, width)
    rows, columns = side * (best_height // tile), side * (best_width // tile)
    # Rounded to 7 digits as stock does: otherwise a float error costs a row.
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return AnyresLayout(side, rows, columns)


def _best_resolution(pinpoints: Sequence[Sequence[int]], height: int, width: int) -> tuple[int, int]:
    """The (height, width) in pixels that keeps most of the image, then wastes least."""

    def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    best = max(pinpoints, key=merit)
    return int(best[0]), int(best[1])


def _llava_refusal(config: Any) -> str | None:
    if config.vision_config.model_type == "pixtral":
        return "its Pixtral vision tower separates the rows of one image, which would be taken for images"
    if getattr(config, "mm_vision_tower", None):
        return (
            "it has the layout of the original LLaVA repository, of which transformers makes a random model; "
            "convert it with 'agci convert-llava', or use llava-hf/llava-1.5-7b-hf"
        )
    return None


_ROWS = (
    Family("qwen2_5_vl", "Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct", "900", _by_grid),
    Family("qwen3_vl", "Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct", "676", _by_grid),
    Family("gemma3n", "Gemma3n", "google/gemma-3n-E4B-it", "256", _equal_shares),
    Family("internvl", "InternVL3", "OpenGVLab/InternVL3-8B-hf", "256 per tile, thumbnail included", _by_runs),
    Family("llava_next", "LLaVA-v1.6", "llava-hf/llava-v1.6-mistral-7b-hf", "2928", _by_anyres),
    Family("llava", "LLaVA-v1.5", "llava-hf/llava-1.5-7b-hf", "576", _equal_shares, _llava_refusal),
)

SUPPORTED_FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in _ROWS})


def find_vlm(model: nn.Module) -> nn.Module:
    """The module inside `model` that merges image features into the text and calls the decoder `language_model`.

    Takes the ForConditionalGeneration model, its inner model, or any wrapper around one (PEFT, DDP).

    Raises:
        InputError: no such module, two of them, or one of a family that is not in the table.
    """
    owners = [module for module in model.modules() if is_vlm(module)]
    known = [owner for owner in owners if _model_type(owner) in SUPPORTED_FAMILIES]
    if len(known) == 1:
        return known[0]
    if known:
        raise InputError(
            f"{type(model).__name__} holds {len(known)} vision-language models; give AGCI the one that it shall serve."
        )
    raise unsupported(owners[0] if owners else model)


def family_of(model: nn.Module) -> Family:
    """The row that `model` belongs to; errors as in `find_vlm`, and where the row refuses the config."""
    owner = find_vlm(model)
    family = SUPPORTED_FAMILIES[_model_type(owner)]
    reason = family.refusal(owner.config)
    if reason is not None:
        raise InputError(f"This {family.name} checkpoint cannot be served by AGCI: {reason}.")
    return family


def is_vlm(module: nn.Module) -> bool:
    """Whether `module` merges image features into the text and calls a decoder of its own, of any family."""
    return "language_model" in module._modules and has_image_features(module)


def has_image_features(module: nn.Module) -> bool:
    return callable(getattr(module, "get_image_features", None))


def unsupported(model: nn.Module) -> InputError:
    """The error for a model that is not in the table; it names the model and lists the table."""
    supported = ", ".join(f"{family.name} ({family.model_type})" for family in _ROWS)
    return InputError(
        f"AGCI does not support {type(model).__name__} (model_type {_model_type(model)!r}). Supported: {supported}."
    )


def _model_type(module: nn.Module) -> str:
    return str(getattr(getattr(module, "config", None), "model_type", "none"))
