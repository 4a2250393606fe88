"""DeepSeek-VL and Janus: an image is padded to a square, and every image has the same number of tokens."""

import math

from transformers_agci.families.declaration import Family
from transformers_agci.families.image_tokens import EQUAL
from transformers_agci.families.token_layout import ImageInfo, Region, TokenGrid


def _padded_square(image: ImageInfo) -> list[TokenGrid]:
    """The longer side is fitted and the image padded on both sides of the shorter one: the tokens reach beyond it."""
    side = math.isqrt(image.tokens)
    longest = max(image.width, image.height)
    wide, tall = longest / image.width, longest / image.height
    region = Region((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)
    return [TokenGrid(0, side, side, side, region)]


FAMILIES = (
    Family("deepseek_vl", "DeepSeek-VL", "deepseek-community/deepseek-vl-1.3b-chat", "576", EQUAL, _padded_square),
    Family(
        "deepseek_vl_hybrid",
        "DeepSeek-VL hybrid",
        "deepseek-community/deepseek-vl-7b-chat",
        "576",
        EQUAL,
        _padded_square,
    ),
    Family("janus", "Janus", "deepseek-community/Janus-Pro-1B", "576", EQUAL, _padded_square),
)
