"""LLaVA: no marks around an image, so that two adjacent images make one run, which is divided by known lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers_agci.families.declaration import WORKS, Family, ForwardCall, ImageTokens
from transformers_agci.families.image_tokens import EQUAL, encoded_lengths, pairs
from transformers_agci.families.token_layout import WHOLE, ImageInfo, Region, TokenGrid
from transformers_agci.families.training_support import Pixels, Size, Template, TrainingSupport

# --- LLaVA-1.5 -----------------------------------------------------------------------------------------------------


def _cropped_square(image: ImageInfo) -> list[TokenGrid]:
    """The shorter side is fitted and the middle cropped, or the image is padded to a square, as the processor says."""
    side = math.isqrt(image.tokens)
    return [TokenGrid(0, side, side, side, _middle(image))]


def _middle(image: ImageInfo) -> Region:
    settings = image.image_processor.to_dict()
    shortest = (settings.get("size") or {}).get("shortest_edge")
    if not settings.get("do_center_crop") or not shortest:
        return WHOLE
    padded = bool(settings.get("do_pad"))  # the tokens then reach beyond the image
    scale = shortest / (max if padded else min)(image.width, image.height)
    wide = settings["crop_size"]["width"] / (image.width * scale)
    tall = settings["crop_size"]["height"] / (image.height * scale)
    if not padded:
        wide, tall = min(1.0, wide), min(1.0, tall)
    return Region((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)


def _count_patches(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    height, width = pixels()["pixel_values"].shape[-2:]
    class_tokens = int(processor.num_additional_image_tokens)
    taken = class_tokens - int(processor.vision_feature_select_strategy == "default")
    return int(height // processor.patch_size) * int(width // processor.patch_size) + taken


def _refusal(config: Any) -> str | None:
    if config.vision_config.model_type == "pixtral":
        return "its Pixtral vision tower separates the rows of one image, which would be taken for images"
    if getattr(config, "mm_vision_tower", None):
        return (
            "it has the layout of the original LLaVA repository, of which transformers makes a random model; "
            "convert it with 'agci convert-llava', or use llava-hf/llava-1.5-7b-hf"
        )
    return None


# --- LLaVA-NeXT (anyres) -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnyresLayout:
    """LLaVA-NeXT's token grids: the base image side x side, then rows x (columns + 1), the last a newline."""

    side: int
    rows: int
    columns: int


def anyres_layout(config: Any, height: int, width: int) -> AnyresLayout:
    """The grids of an image of height x width pixels: the tiles' grid is cut to the image's aspect ratio.

    Worked for llava-v1.6, whose tiles have 336 pixels and patches 14, so that a tile is 24 x 24 tokens:
    - 840 x 840: of the pinpoints 672 x 672 keeps most of the image; 2 x 2 tiles are 48 x 48 tokens. They have the
      image's aspect ratio already and nothing is cut: 24 * 24 + 48 * (48 + 1) = 576 + 2352 = 2928 tokens.
    - 400 high, 800 wide: 336 x 672 wastes nothing; 1 x 2 tiles are 24 x 48 tokens: 576 + 24 * 49 = 1752.
    - 500 high, 800 wide: 672 x 672 keeps most; in 48 x 48 tokens the image is padded above and below, and of the 48
      rows only 500 * 48 / 800 = 30 hold some of it. (48 - 30) // 2 = 9 are cut at either end: 576 + 30 * 49 = 2046.
    """
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


def anyres_tokens(config: Any, height: int, width: int) -> int:
    """Image tokens of LLaVA-NeXT for an image of height x width pixels: base, tiles without padding, newlines."""
    layout = anyres_layout(config, height, width)
    return layout.side**2 + layout.rows * (layout.columns + 1)


def _best_resolution(pinpoints: Sequence[Sequence[int]], height: int, width: int) -> tuple[int, int]:
    """The (height, width) in pixels that keeps most of the image, then wastes least."""

    def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    best = max(pinpoints, key=merit)
    return int(best[0]), int(best[1])


def _by_anyres(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    if call.image_sizes is None:
        return encoded_lengths(call)
    return [anyres_tokens(config, height, width) for height, width in pairs(call.image_sizes)]


def _base_and_tiles(image: ImageInfo) -> list[TokenGrid]:
    """The image squeezed into a square, then the tiles' grid, a newline token ending each of its rows."""
    layout = anyres_layout(image.config, image.height, image.width)
    base = layout.side**2
    return [
        TokenGrid(0, layout.side, layout.side, layout.side),
        TokenGrid(base, layout.rows, layout.columns, layout.columns + 1),
    ]


def _count_anyres(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return anyres_tokens(config, height=size[1], width=size[0])


# --- the original repository ---------------------------------------------------------------------------------------


def is_original_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is the original LLaVA repository's; some of LLaVA-1.5 call themselves "llava", too."""
    model_type = config.get("model_type")
    original = {name for family in FAMILIES if isinstance(family.conversion, tuple) for name in family.conversion}
    if not isinstance(model_type, str) or model_type not in original:
        return False
    return model_type != "llava" or "mm_vision_tower" in config


def twin_of_original(config: Mapping[str, Any]) -> Family:
    """The family that an original LLaVA checkpoint belongs to in transformers."""
    anyres = config.get("image_aspect_ratio") == "anyres"
    mistral = config["model_type"] == "llava_mistral"
    wanted = "llava_next" if anyres or mistral else "llava"
    return next(family for family in FAMILIES if family.model_type == wanted)


_IMAGE: dict[str, Any] = {"image": "{tokens}", "image_token": "<image>"}

FAMILIES = (
    Family(
        "llava_next",
        "LLaVA-v1.6",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "2928",
        images=ImageTokens(_by_anyres),
        layout=_base_and_tiles,
        flow=WORKS,
        training=TrainingSupport(
            (
                Template(
                    "llava_next_mistral",
                    user="[INST] {content}[/INST]",
                    assistant=" {content}",
                    system="{content}\n\n",
                    begins_with_bos=True,
                    ends_with_eos=True,
                    system_in_user=True,
                    **_IMAGE,
                ),
            ),
            _count_anyres,
        ),
        conversion=("llava_mistral",),
        in_paper=True,
    ),
    Family(
        "llava",
        "LLaVA-v1.5",
        "llava-hf/llava-1.5-7b-hf",
        "576",
        images=EQUAL,
        layout=_cropped_square,
        flow=WORKS,
        training=TrainingSupport(
            (
                Template(
                    "llava",
                    user="USER: {content} ASSISTANT:",
                    assistant="{content}",
                    system="{content}",
                    default_system="A chat between a curious user and an artificial intelligence assistant. "
                    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
                    ends_with_eos=True,
                    **_IMAGE,
                ),
            ),
            _count_patches,
        ),
        conversion=("llava_llama", "llava"),
        refusal=_refusal,
        in_paper=True,
    ),
)
