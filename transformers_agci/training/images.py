"""Images in training: brought within the recipe's bounds, counted in image tokens, turned into pixel inputs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from transformers_agci.data.images import decode_image, resolve_below
from transformers_agci.data.sharegpt import Conversation
from transformers_agci.errors import InputError
from transformers_agci.families import anyres_tokens

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Bounds:
    """How large an image may be before the image processor sees it, and how InternVL cuts it into tiles."""

    max_pixels: int = 768 * 768
    min_pixels: int = 32 * 32
    crop_to_patches: bool = False

    def __post_init__(self) -> None:
        if self.min_pixels > self.max_pixels:
            raise InputError(
                f"image_min_pixels ({self.min_pixels}) must not be larger than image_max_pixels ({self.max_pixels})."
            )

    def steps(self, size: Size, model_type: str) -> Iterator[Size]:
        """The sizes an image is resized to, one after another; none where it lies within the bounds."""
        for wrong, bound in (
            (lambda s: s[0] * s[1] > self.max_pixels, lambda s: _scaled(s, self.max_pixels)),
            (lambda s: s[0] * s[1] < self.min_pixels, lambda s: _scaled(s, self.min_pixels)),
            *(QWEN_BOUNDS if model_type in ("qwen2_5_vl", "qwen3_vl") else ()),
        ):
            if wrong(size):
                size = bound(size)
                yield size


def _scaled(size: Size, pixels: int) -> Size:
    factor = math.sqrt(pixels / (size[0] * size[1]))
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


# Qwen's processor refuses images that are narrower than a token or longer than 200 times their width.
QWEN_BOUNDS: tuple[tuple[Callable[[Size], bool], Callable[[Size], Size]], ...] = (
    (lambda s: min(s) < 28, lambda s: (max(s[0], 28), max(s[1], 28))),
    (lambda s: s[0] / s[1] > 200, lambda s: (s[1] * 180, s[1])),
    (lambda s: s[1] / s[0] > 200, lambda s: (s[0], s[0] * 180)),
)

TILES = {"crop_to_patches": True, "max_patches": 12, "min_patches": 1}  # InternVL, where the recipe asks for tiles


class ImageInputs:
    """Images for one checkpoint."""

    def __init__(self, processor: Any, config: Any, bounds: Bounds) -> None:
        self._processor = processor
        self._images = processor.image_processor
        self._config = config
        self._bounds = bounds
        self._tiles = TILES if bounds.crop_to_patches and config.model_type == "internvl" else {}
        self._known: dict[Size, int] = {}

    def open(self, conversation: Conversation, root: Path) -> list[Image.Image]:
        """The row's images below `root`, RGB, within the bounds."""
        opened = []
        for number, name in enumerate(conversation.images):
            where = conversation.image_where(number)
            path = resolve_below(root, name, where)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InputError(f"{where}: the image {path} cannot be read ({error.strerror}).") from None
            opened.append(self._bounded(decode_image(data, f"{where}: the image {path}")))
        return opened

    def _bounded(self, image: Image.Image) -> Image.Image:
        for size in self._bounds.steps(image.size, self._config.model_type):
            image = image.resize(size)
        return image.convert("RGB")

    def tokens(self, size: Size) -> int:
        """Image tokens of an image of this size in pixels, before it is brought within the bounds."""
        *_, last = size, *self._bounds.steps(size, self._config.model_type)
        return self.tokens_within(last)

    def tokens_within(self, size: Size) -> int:
        """Image tokens of an image that lies within the bounds."""
        if size not in self._known:
            count = TOKENS[self._config.model_type]
            self._known[size] = count(self._processor, self._config, lambda: self._made([Image.new("RGB", size)]), size)
        return self._known[size]

    def _made(self, pictures: Sequence[Image.Image]) -> Mapping[str, Any]:
        made: Mapping[str, Any] = self._images(images=list(pictures), return_tensors="pt", **self._tiles)
        return made

    def pixels(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """The model's pixel inputs for the images of a batch, in order."""
        return {name: value for name, value in self._made(pictures).items() if name in PIXEL_INPUTS}


PIXEL_INPUTS = ("pixel_values", "image_grid_thw", "image_sizes")

# processor, config, what makes one image's pixel inputs (not quick), its (width, height) -> image tokens
Pixels = Callable[[], Mapping[str, Any]]
Count = Callable[[Any, Any, Pixels, Size], int]


def _by_grid(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return int(pixels()["image_grid_thw"][0].prod()) // int(processor.image_processor.merge_size) ** 2


def _by_tiles(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return int(pixels()["pixel_values"].shape[0]) * int(processor.image_seq_length)


def _fixed(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return int(processor.image_seq_length)


def _by_patches(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    height, width = pixels()["pixel_values"].shape[-2:]
    class_tokens = int(processor.num_additional_image_tokens)
    taken = class_tokens - (processor.vision_feature_select_strategy == "default")
    return int(height // processor.patch_size) * int(width // processor.patch_size) + taken


def _by_anyres(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return anyres_tokens(config, height=size[1], width=size[0])


TOKENS: Mapping[str, Count] = MappingProxyType(
    {
        "qwen2_5_vl": _by_grid,
        "qwen3_vl": _by_grid,
        "gemma3n": _fixed,
        "internvl": _by_tiles,
        "llava_next": _by_anyres,
        "llava": _by_patches,
    }
)
