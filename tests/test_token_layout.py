"""Image tokens on the image: change the pixels of one cell, and the rows that change most lie there."""

from typing import Any

import pytest
import torch
from PIL import Image
from tiny_checkpoints import FAMILIES, build_model, build_processor, prompt_inputs, random_image

from transformers_agci import image_embeddings
from transformers_agci.errors import InputError
from transformers_agci.families import family_of
from transformers_agci.families.token_layout import ImageInfo, Region, TokenGrid, TokenLayout, token_layout


def layout_of(model: Any, processor: Any, image: Image.Image, inputs: dict[str, torch.Tensor]) -> TokenLayout:
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    grid = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else None
    return token_layout(family_of(model), ImageInfo(*image.size, tokens, model.config, processor.image_processor, grid))


@pytest.mark.parametrize("size", [(168, 168), (168, 120), (120, 240)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_that_change_most_lie_on_the_changed_cell(family: str, size: tuple[int, int]) -> None:
    model, processor = build_model(family), build_processor(family)
    image = random_image(5, *size)
    inputs = prompt_inputs(processor, "Is there a dog?", image)
    layout = layout_of(model, processor, image, inputs)
    before = image_embeddings(model, inputs)[0]
    assert layout.tokens == len(before)
    width, height = size
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        # the middle of a quarter, so that LLaVA's crop keeps all of it
        box = (round((0.3 + 0.25 * col) * width), round((0.3 + 0.25 * row) * height))
        changed = image.copy()
        patch = random_image(9, max(8, round(0.15 * width)), max(8, round(0.15 * height)))
        changed.paste(patch, box)
        after = image_embeddings(model, prompt_inputs(processor, "Is there a dog?", changed))[0]
        moved = (after - before).norm(dim=1)
        # the most moved row of the finest grid, and the place that holds most change in all
        raster = layout.rasterize(moved, 60, 60)
        down, across = divmod(int(raster.argmax()), 60)
        assert abs((across + 0.5) / 60 - (box[0] + patch.width / 2) / width) < _reach(layout, "cols"), (row, col)
        assert abs((down + 0.5) / 60 - (box[1] + patch.height / 2) / height) < _reach(layout, "rows"), (row, col)


def _reach(layout: TokenLayout, side: str) -> float:
    """A token's extent in the finest grid, and half the patch: as near as the layout can tell."""
    finest = min(
        (grid.region[2] - grid.region[0] if side == "cols" else grid.region[3] - grid.region[1]) / getattr(grid, side)
        for grid in layout.grids
    )
    return finest + 0.075


def test_sum_is_kept_and_newlines_have_no_place() -> None:
    layout = TokenLayout(4 + 6, (TokenGrid(0, 2, 2, 2), TokenGrid(4, 2, 2, 3)))
    values = torch.arange(10.0)
    newlines = values[6] + values[9]
    assert float(layout.rasterize(values, 7, 5).sum()) == pytest.approx(float(values.sum() - newlines))
    assert layout.placed(values) == float(values.sum() - newlines)
    corner = TokenLayout(1, (TokenGrid(0, 1, 1, 1, Region(0.5, 0.5, 1, 1)),)).rasterize(torch.ones(1), 4, 4)
    assert corner[2:, 2:].tolist() == [[0.25, 0.25], [0.25, 0.25]] and float(corner.sum()) == 1


def test_other_tokens_than_the_layout_has_are_refused() -> None:
    model, processor = build_model("llava_next"), build_processor("llava_next")
    with pytest.raises(InputError, match=r"image tokens in LLaVA-v1\.6's layout, but this prompt has 7"):
        token_layout(family_of(model), ImageInfo(100, 100, 7, model.config, processor.image_processor))
