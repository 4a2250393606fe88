"""Prompts whose ids are written by hand: every family finds each image exactly, or says that it cannot tell.

Which tokens belong to which image is known from how the prompt is put together. Around the images stand the marks that
the family's processor writes, a part of them, or none, and between them words: once only, over and over, or alike, as
"Image A" and "Image B" are.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import BOS, IMG, TINY, TinyFamily, onevision_piece

from transformers_agci import SUPPORTED_FAMILIES
from transformers_agci.families import find_vlm
from transformers_agci.method.forward_call import forward_call
from transformers_agci.method.image_positions import image_positions

pytestmark = [pytest.mark.filterwarnings("ignore")]

A, B, C = 50, 51, 52  # words that come more than once; those that come once count up from 60


def once(*counts: int) -> list[list[int]]:
    numbers = itertools.count(60)
    return [[next(numbers) for _ in range(count)] for count in counts]


def alike(frame: Callable[[int], list[int]], images: int) -> list[list[int]]:
    return [frame(60 + number) for number in range(images)]


# number of images -> the text before, between and behind them
PROMPTS: dict[str, Callable[[int], list[list[int]]]] = {
    **{f"{n} words": lambda images, n=n: once(3, *[n] * (images - 1), 4) for n in (0, 1, 2, 3, 5, 24)},  # type: ignore[misc]
    "a word, nothing before": lambda images: once(0, *[1] * (images - 1), 4),
    "a word, two before the last": lambda images: once(3, *[1] * (images - 2), 2, 4),
    "two words, three before the last": lambda images: once(3, *[2] * (images - 2), 3, 4),
    "a comma": lambda images: [[A], *[[B]] * (images - 1), [C, A]],
    "a line break behind each": lambda images: [[A], *[[B]] * (images - 1), [B, C]],
    "a line break before and behind each": lambda images: [[B], *[[B]] * (images - 1), [B, C]],
    "a line and a word": lambda images: [*alike(lambda word: [A, word], images), [A, B]],
    "Image A": lambda images: [*alike(lambda word: [A, B, word], images), [A, C]],
    "Image A:": lambda images: [*alike(lambda word: [A, B, word, C], images), [A, B]],
    "(A)": lambda images: [[A], *alike(lambda word: [word, B, A], images - 1), [B, C]],
    "a word and a line": lambda images: [[C], *alike(lambda word: [word, A], images - 1), [A, B]],
    "two lines before the last": lambda images: [*alike(lambda w: [A, w], images - 1), [B, B, A, 90], [A, C]],
}
KEPT = ("all marks", "none", "those before", "those behind")


def kept(ids: list[int], marks: str) -> list[int]:
    """The ids of one image without the marks around it; those within it stay."""
    places = [place for place, token in enumerate(ids) if token == IMG]
    first = 0 if marks in ("all marks", "those before") else places[0]
    stop = len(ids) if marks in ("all marks", "those behind") else places[-1] + 1
    return ids[first:stop]


def found(family: TinyFamily, vlm: Any, forms: tuple[str, ...], texts: list[list[int]], marks: str) -> str:
    """ "exact", "refused", or what was found instead."""
    generator = torch.Generator().manual_seed(0)
    alone = {"alone": len(forms) == 1} if family.piece is onevision_piece else {}
    pieces = [family.piece(form, generator, **alone) for form in forms]
    ids, images = [BOS, *texts[0]], []
    for piece, text in zip(pieces, texts[1:], strict=True):
        part = kept(piece.ids, marks)
        images.append([len(ids) + place for place, token in enumerate(part) if token == IMG])
        ids += part + text
    inputs = {"input_ids": torch.tensor([ids]), **family.collate([pieces])}
    call = forward_call(vlm, (), inputs)
    try:
        positions = image_positions(vlm, SUPPORTED_FAMILIES[family.model_type], call, inputs["input_ids"] == IMG)
    except ValueError as error:
        assert "AGCI cannot tell" in str(error) or "do not divide" in str(error), error
        return "refused"
    got = [image.index().tolist() for image in positions]
    return "exact" if got == images else f"{[len(image) for image in got]} in place of {[len(i) for i in images]}"


def walk(family: TinyFamily, vlm: Any, kinds: tuple[str, ...] = KEPT) -> dict[tuple[Any, ...], str]:
    """Every prompt of two to five images, one of them of several tiles or none."""
    results = {}
    for images, marks, name in itertools.product((2, 3, 4, 5), kinds, PROMPTS):
        small, big = ("plain",) * (images - 1), ("tiled",)
        for forms in (("plain", *small), big + small, small + big):
            results[forms, marks, name] = found(family, vlm, forms, PROMPTS[name](images), marks)
    return results


# Written like one image, its marks being any tokens, as long as nothing says their ids; and how many of these prompts.
UNKNOWABLE = {
    "aya_vision": {"1 words", "a word, nothing before", "a comma"},
    "cohere2_vision": {"a line break behind each"},
    **{name: {"two lines before the last"} for name in ("idefics3", "smolvlm", "granite_docling")},
    "qianfan_ocr": {"0 words"},
}
# Where nothing says the ids of the marks, crops that touch and have no marks on both sides are images.
TOUCHING = ("aria", "got_ocr2")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))
def test_images_are_found_exactly_or_refused(family: TinyFamily) -> None:
    results = walk(family, find_vlm(family.build()))
    wrong = {prompt: result for prompt, result in results.items() if result not in ("exact", "refused")}
    if family.model_type in TOUCHING:
        wrong = {prompt: result for prompt, result in wrong.items() if "tiled" not in prompt[0]}
        assert {(marks, name) for _, marks, name in wrong} <= {("none", "0 words")}
        return
    assert {name for _, _, name in wrong} <= UNKNOWABLE.get(family.model_type, set()), wrong
    assert "all marks" not in {marks for _, marks, _ in wrong}, wrong


@pytest.mark.sampled(8)
@pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))
def test_prompts_with_all_marks_are_exact(family: TinyFamily) -> None:
    """As the processors write them, whatever words stand between."""
    results = walk(family, find_vlm(family.build()), ("all marks",))
    assert Counter(results.values()) == {"exact": len(results)}, {p: r for p, r in results.items() if r != "exact"}


# family -> the marks around an image, as the tokenizer calls them
NAMED = {
    "aya_vision": {"<|START_OF_IMG|>": 3, "<|END_OF_IMG|>": 4},
    "cohere2_vision": {"<|START_OF_IMG|>": 3, "<|END_OF_IMG|>": 4},
    "lfm2_vl": {"<|image_start|>": 3, "<|image_end|>": 4},
    "llama4": {"<|image_start|>": 3, "<|image_end|>": 4},
    "aria": {"<fim_prefix>": 3, "<fim_suffix>": 4},
    "got_ocr2": {"<img>": 3, "</img>": 4},
    "qianfan_ocr": {"<img>": 3, "</img>": 4},
    "idefics3": {"<fake_token_around_image>": 3},
    "smolvlm": {"<fake_token_around_image>": 3},
    "granite_docling": {"<fake_token_around_image>": 3},
}


def with_tokenizer(vlm: Any, folder: Path, name: str, tokens: dict[str, int]) -> Any:
    """`vlm` as if it had been loaded from a folder with this tokenizer."""
    if name == "tokenizer.json":
        said: dict[str, Any] = {"added_tokens": [{"id": number, "content": text} for text, number in tokens.items()]}
    else:
        said = {"added_tokens_decoder": {str(number): {"content": text} for text, number in tokens.items()}}
    folder.mkdir()
    (folder / name).write_text(json.dumps(said))
    vlm.config._name_or_path = str(folder)
    return vlm


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMED)
def test_a_checkpoint_with_a_tokenizer_leaves_no_doubt(name: str, tmp_path: Path) -> None:
    family = TINY.get(name) or pytest.skip(f"this transformers has no {name}")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        vlm = with_tokenizer(find_vlm(family.build()), tmp_path / file.replace(".", "_"), file, NAMED[name])
        results = walk(family, vlm)
        wrong = {prompt: result for prompt, result in results.items() if result not in ("exact", "refused")}
        assert not wrong
        assert {result for (_, marks, _), result in results.items() if marks == "all marks"} == {"exact"}


@pytest.mark.parametrize("said", ["no json", "[]", '{"added_tokens": [3]}', '{"added_tokens": [{"id": "x"}]}'])
def test_a_damaged_tokenizer_is_as_none(said: str, tmp_path: Path) -> None:
    vlm = find_vlm(TINY["aya_vision"].build())
    (tmp_path / "tokenizer.json").write_text(said)
    vlm.config._name_or_path = str(tmp_path)
    assert found(TINY["aya_vision"], vlm, ("tiled", "plain"), PROMPTS["5 words"](2), "all marks") == "exact"
