"""LLaVA: no marks around an image, so that two adjacent images make one run, which is divided by known lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.families.declaration import BY_TRANSFORMERS, Family, ForwardCall, ImageTokens, Lacks, VllmClass
from transformers_agci.families.image_tokens import EQUAL, encoded_lengths, equal_shares, pairs
from transformers_agci.families.reasons import NO_LAYOUT, UNCOUNTED
from transformers_agci.families.token_layout import WHOLE, ImageInfo, Region, TokenGrid
from transformers_agci.families.training_support import Pixels, Size, Template, TrainingSupport

# --- LLaVA-1.5 -----------------------------------------------------------------------------------------------------


def _has_pixtral(config: Any) -> bool:
    """Whether the vision tower is Pixtral's: images of any size, and a break token behind each row of an image."""
    return bool(config.vision_config.model_type == "pixtral")


def _by_tower(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    if not _has_pixtral(config):
        return equal_shares(config, call, total)
    if call.encoded is not None or call.image_sizes is None:
        return encoded_lengths(call)
    patch = config.vision_config.patch_size
    return [(height // patch) * (width // patch) for height, width in pairs(call.image_sizes)]


def _cropped_square(image: ImageInfo) -> list[TokenGrid]:
    """The shorter side is fitted and the middle cropped, or the image is padded to a square, as the processor says."""
    if _has_pixtral(image.config):
        raise InputError("Where the rows of LLaVA's Pixtral vision tower lie on the image is not declared yet.")
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
    return _grids(anyres_layout(image.config, image.height, image.width))


def _grids(layout: AnyresLayout) -> list[TokenGrid]:
    base = layout.side**2
    return [
        TokenGrid(0, layout.side, layout.side, layout.side),
        TokenGrid(base, layout.rows, layout.columns, layout.columns + 1),
    ]


def _count_anyres(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return anyres_tokens(config, height=size[1], width=size[0])


# --- LLaVA-OneVision (anyres, shrunk) ------------------------------------------------------------------------------


def shrunk_layout(config: Any, height: int, width: int) -> AnyresLayout:
    """OneVision's grids: as LLaVA-NeXT's, but the tiles' grid is made smaller where it has more tokens than allowed.

    `vision_aspect_ratio` anyres_max_9 allows as many as 9 tiles have. Worked for tiles of 27 x 27 tokens: a grid of
    162 x 162 has 26244 of 9 * 729 = 6561, sqrt(26244 / 6561) = 2 is more than 1.1, and 81 x 81 are left.
    """
    layout = anyres_layout(config, height, width)
    allowed = int(str(config.vision_aspect_ratio).removeprefix("anyres_max_")) * layout.side**2
    ratio = math.sqrt(layout.rows * layout.columns / allowed)
    if ratio <= 1.1:
        return layout
    return AnyresLayout(layout.side, int(layout.rows // ratio), int(layout.columns // ratio))


def _by_shrunk_anyres(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """An image among others in its prompt has no tiles: the whole and one newline."""
    if call.encoded is not None or call.image_sizes is None:
        return encoded_lengths(call)
    sizes = pairs(call.image_sizes)
    counts = call.arguments.get("batch_num_images")
    alone = [True] * len(sizes) if counts is None else [n == 1 for n in map(int, counts) for _ in range(n)]
    return [
        _shrunk_tokens(config, *size) if tiled else anyres_layout(config, *size).side ** 2 + 1
        for size, tiled in zip(sizes, alone, strict=True)
    ]


def _shrunk_tokens(config: Any, height: int, width: int) -> int:
    layout = shrunk_layout(config, height, width)
    return layout.side**2 + layout.rows * (layout.columns + 1)


def _base_and_shrunk_tiles(image: ImageInfo) -> list[TokenGrid]:
    return _grids(shrunk_layout(image.config, image.height, image.width))


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
        vllm=VllmClass("LlavaNextForConditionalGeneration"),
    ),
    Family(
        "llava",
        "LLaVA-v1.5",
        "llava-hf/llava-1.5-7b-hf",
        "576",
        images=ImageTokens(_by_tower, rows=_has_pixtral),
        layout=_cropped_square,
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
        other_processors=("PixtralProcessor",),
        refusal=_refusal,
        in_paper=True,
        vllm=VllmClass("LlavaForConditionalGeneration"),
    ),
    Family(
        "llava_onevision",
        "LLaVA-OneVision",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "729 and up to 9 times that",
        ImageTokens(_by_shrunk_anyres),
        _base_and_shrunk_tiles,
        remote_code=("llava_qwen",),
        vllm=VllmClass("LlavaOnevisionForConditionalGeneration"),
    ),
    Family(
        "llava_next_video",
        "LLaVA-NeXT-Video",
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
        "2928",
        ImageTokens(_by_anyres),
        _base_and_tiles,
        vllm=Lacks(
            "vLLM's class takes its videos only; for its images put LLaVA-NeXT's model_type (llava_next) and "
            "architectures (LlavaNextForConditionalGeneration) into config.json"
        ),
    ),
    Family("vipllava", "VipLLaVA", "llava-hf/vip-llava-7b-hf", "576", EQUAL, _cropped_square, vllm=BY_TRANSFORMERS),
    Family("video_llava", "Video-LLaVA", "LanguageBind/Video-LLaVA-7B-hf", "257", EQUAL, NO_LAYOUT, vllm=UNCOUNTED),
    Family(
        "fast_vlm",
        "FastVLM",
        "KamilaMila/FastVLM-7B",
        "256",
        EQUAL,
        NO_LAYOUT,
        remote_code=("llava_qwen2",),
        vllm=BY_TRANSFORMERS,
    ),
)
