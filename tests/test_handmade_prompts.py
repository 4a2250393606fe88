"""Prompts whose ids are written by hand, without the marks that processors put around images: told apart or refused,
never merged into one image without a word."""

from typing import Any

import pytest
import torch
import transformers
from test_separators import BIG, SMALL, found, lfm
from tiny_families import BOS, BROKEN, IMG, TINY, TinyFamily

from transformers_agci import attach

pytestmark = pytest.mark.filterwarnings("ignore")


def inputs_of(family: TinyFamily, between: list[list[int]], forms: list[str]) -> dict[str, torch.Tensor]:
    """[BOS, image, between, image, ..., text]; of each piece of the family the image tokens alone."""
    generator = torch.Generator().manual_seed(0)
    pieces = [family.piece(form, generator) for form in forms]
    ids = [BOS]
    for piece, gap in zip(pieces, [*between, [90, 91, 92]], strict=True):
        ids += [token for token in piece.ids if token == IMG] + gap
    return {"input_ids": torch.tensor([ids]), **family.collate([pieces])}


@torch.no_grad()
def images_of(family: TinyFamily, inputs: dict[str, torch.Tensor], how: str) -> int:
    model = family.build()
    handle = attach(model, 1.0)
    if how == "forward":
        model(**inputs)
    else:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return int(handle.injections)


@pytest.mark.parametrize("how", ["forward", "generate"])
@pytest.mark.parametrize("name", ["aria", "got_ocr2"])
@pytest.mark.parametrize("images", [2, 3])
def test_adjacent_images_without_marks(name: str, images: int, how: str) -> None:
    """One crop each: their processors cut only where they are asked to, and put marks around the crops."""
    family = TINY[name]
    inputs = inputs_of(family, [[]] * (images - 1), ["plain"] * images)
    assert images_of(family, inputs, how) == images


# name -> what is expected of two images with so many text tokens between: 2 images, or an error
SEPARATED = ("aya_vision", "llama4", "lfm2_vl", "cohere2_vision", "ovis2", "idefics3", "smolvlm", "aria", "got_ocr2")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("tokens", [1, 2, 5, 24, 25])
@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("name", SEPARATED)
def test_text_between_images_is_no_separator(name: str, images: int, tokens: int) -> None:
    family = TINY.get(name) or pytest.skip(BROKEN[name])
    between = [list(range(100 + 30 * number, 100 + 30 * number + tokens)) for number in range(images - 1)]
    inputs = inputs_of(family, between, ["plain"] * images)
    if name == "aya_vision" and images == 3 and tokens == 1:
        pytest.skip("as a tiled image is written whose marks are one token each; docs/method.md says so")
    try:
        counted = images_of(family, inputs, "forward")
    except ValueError as error:
        assert "cannot tell" in str(error)
        assert name in ("aya_vision", "llama4", "lfm2_vl")
        assert tokens < 25
    else:
        assert counted == images


def test_same_line_break_behind_every_image_of_command_a() -> None:
    """Written as two tiles would be, but an image is cut into two tiles and the whole at least."""
    family = TINY["cohere2_vision"]
    with pytest.raises(ValueError, match="cannot tell"):
        images_of(family, inputs_of(family, [[90]], ["plain"] * 2), "forward")


def processed(images: list[Any]) -> tuple[Any, int]:
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("4.57 builds its processors otherwise")
    processor, mark, token = lfm(["one token each"])
    prompt = "<s>" + mark * len(images) + " What is it?"
    made = processor(text=[prompt], images=[images], return_tensors="pt", use_image_special_tokens=False)
    return made, processor.tokenizer.convert_tokens_to_ids(token)


def test_lfm2_tiles_without_special_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="use_image_special_tokens"):
        found("lfm2_vl", *processed([BIG]))
    made, token = processed([BIG.resize((40, 20)), BIG.resize((20, 40))])
    assert len(found("lfm2_vl", made, token)) == 2


def test_square_images_without_special_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot tell tiles of one image from images"):
        found("lfm2_vl", *processed([SMALL, SMALL]))
