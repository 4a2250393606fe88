"""InternVL 2.5, 3 and 3.5: an image is cut into tiles, a thumbnail of the whole follows; all of it is one run."""

import math
from typing import Any

from transformers_agci.families.declaration import Family, VllmClass
from transformers_agci.families.image_tokens import TOUCHING
from transformers_agci.families.token_layout import ImageInfo, Region, TokenGrid
from transformers_agci.families.training_support import CHATML, Pixels, Size, Template, TrainingSupport


def _tiles_and_thumbnail(image: ImageInfo) -> list[TokenGrid]:
    """The image squeezed into rows x cols square tiles, and where there are several a thumbnail last."""
    return tiles_and_thumbnail(image, int(image.config.image_seq_length))


def tiles_and_thumbnail(image: ImageInfo, per_tile: int) -> list[TokenGrid]:
    """The same for any family that cuts so, with `per_tile` tokens in each square."""
    side = math.isqrt(per_tile)
    images = image.tokens // per_tile
    if images <= 1:
        return [TokenGrid(0, side, side, side)]
    tiles = images - 1
    rows, cols = _tile_grid(tiles, image.width / image.height)
    grids = [TokenGrid(number * per_tile, side, side, side, _tile(number, rows, cols)) for number in range(tiles)]
    return [*grids, TokenGrid(tiles * per_tile, side, side, side)]


def _tile_grid(tiles: int, aspect: float) -> tuple[int, int]:
    """(rows, cols) of that many tiles: the processor takes the grid whose cols / rows is next to width / height."""
    choices = [(tiles // cols, cols) for cols in range(1, tiles + 1) if tiles % cols == 0]
    return min(choices, key=lambda choice: abs(aspect - choice[1] / choice[0]))


def _tile(number: int, rows: int, cols: int) -> Region:
    row, col = divmod(number, cols)
    return Region(col / cols, row / rows, (col + 1) / cols, (row + 1) / rows)


def _count_tokens(processor: Any, config: Any, pixels: Pixels, size: Size) -> int:
    return int(pixels()["pixel_values"].shape[0]) * int(processor.image_seq_length)


FAMILIES = (
    Family(
        "internvl",
        "InternVL3",
        "OpenGVLab/InternVL3-8B-hf",
        "256 per tile, thumbnail included",
        images=TOUCHING,
        layout=_tiles_and_thumbnail,
        training=TrainingSupport(
            (
                Template(
                    "intern_vl",
                    **CHATML,
                    image="<img>{tokens}</img>",
                    image_token="<IMG_CONTEXT>",
                    # its own: "You are InternVL, a multimodal model by Shanghai AI Laboratory, Tsinghua and partners"
                    default_system="你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
                    begins_with_bos=True,
                    words=("<|im_start|>", "<|im_end|>", "<img>", "</img>"),
                ),
            ),
            _count_tokens,
            tiles={"crop_to_patches": True, "max_patches": 12, "min_patches": 1},
        ),
        in_paper=True,
        remote_code=("internvl_chat",),
        vllm=VllmClass("InternS1ForConditionalGeneration"),  # for InternVL in transformers' layout, too
    ),
    Family(
        "qianfan_ocr",
        "Qianfan-OCR",
        "baidu/Qianfan-OCR",
        "256 per tile, thumbnail included",
        TOUCHING,
        _tiles_and_thumbnail,
        vllm=VllmClass("QianfanOCRForConditionalGeneration"),
    ),
)
