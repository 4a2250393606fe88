"""What `agci convert-llava` makes of tokenizer, images and prompts, against SentencePiece and by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import original_llava
import original_llava as llava
import pytest
import tiny_checkpoints as tiny
import torch
import transformers
from original_llava import ROWS, loaded_model, read
from PIL import Image

from transformers_agci.conversion.convert import convert

converted = original_llava.converted  # fixture

# What the sentencepiece package makes of the same tokenizer.model: texts, and ids without the begin token.
RECORDED = json.loads((Path(__file__).parent / "reference" / "sentencepiece_ids.json").read_text(encoding="utf-8"))


def test_token_ids_are_those_of_sentencepiece(converted: Callable[[str], Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted("llava"))
    assert len(RECORDED) > 20
    for text, ids in RECORDED.items():
        assert tokenizer(text).input_ids == [1, *ids], text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.image_token, tokenizer.image_token_id, tokenizer.pad_token_id) == ("<image>", ROWS, ROWS + 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (1, 2, "left")
    assert tokenizer.model_max_length == 2048


def test_text_around_an_image_is_split_as_separate_pieces(converted: Callable[[str], Path]) -> None:
    """The original code tokenizes what stands before and after <image> by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted("llava"))
    before, after = "USER: ", "\nIs there a dog? ASSISTANT:"
    expected = [*tokenizer(before).input_ids, ROWS, *tokenizer(after).input_ids[1:]]
    assert tokenizer(f"{before}<image>{after}").input_ids == expected


def turn(role: str, *parts: str) -> dict[str, Any]:
    content = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


CONVERSATION = [turn("user", "<image>", "Is there a dog?"), turn("assistant", "Yes"), turn("user", "And a cat?")]


@pytest.mark.parametrize(
    ("family", "prompt", "with_system"),
    [
        (
            "llava",
            "USER: <image>\nIs there a dog? ASSISTANT: Yes</s>USER: And a cat? ASSISTANT:",
            "Be kind. USER: Hi ASSISTANT:",
        ),
        (
            "llava_next",
            "[INST] <image>\nIs there a dog? [/INST] Yes </s>[INST] And a cat? [/INST]",
            "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]",
        ),
    ],
)
def test_prompt_forms(family: str, prompt: str, with_system: str, converted: Callable[[str], Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted(family))
    assert processor.apply_chat_template(CONVERSATION, add_generation_prompt=True) == prompt
    system = [turn("system", "Be kind."), turn("user", "Hi")]
    assert processor.apply_chat_template(system, add_generation_prompt=True) == with_system
    strings = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in system]
    assert processor.apply_chat_template(strings, add_generation_prompt=True) == with_system


def by_hand(image: Image.Image, side: int = 56) -> np.ndarray:
    """LLaVA-1.5's own preparation: padded to a square with the mean colour, resized, normalised."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), tuple(int(255 * channel) for channel in mean))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)) / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)


def test_images_are_padded_as_in_the_original(converted: Callable[[str], Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted("llava"))
    image = tiny.random_image(width=120, height=60)
    found = np.asarray(processor.image_processor(image, return_tensors="np")["pixel_values"][0])
    assert found.shape == (3, 56, 56)
    # PIL rounds to whole levels after each of its two passes, torch once: a level is 1/255 / 0.26
    assert np.abs(found - by_hand(image)).mean() < 0.01
    assert np.abs(found - by_hand(image)).max() < 4 / 255 / 0.26


def test_images_without_padding_are_cropped(tmp_path: Path) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", image_aspect_ratio=None)
    folder = convert(source, tmp_path / "hf").folder
    assert "do_pad" not in read(folder, "preprocessor_config.json")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    image = tiny.random_image(width=120, height=60)
    middle = image.crop((30, 0, 90, 60))
    found, expected = (
        np.asarray(processor.image_processor(shown, return_tensors="np")["pixel_values"][0])
        for shown in (image, middle)
    )
    assert np.abs(found - expected).mean() < 0.02


@pytest.mark.parametrize(("family", "tokens"), [("llava", 16), ("llava_next", 16 + 64 + 8)])
def test_an_image_takes_the_tokens_that_the_model_expects(
    family: str, tokens: int, converted: Callable[[str], Path]
) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted(family))
    inputs = tiny.prompt_inputs(processor, "Is there a dog?", tiny.random_image(width=112, height=112))
    assert int((inputs["input_ids"] == ROWS).sum()) == tokens
    logits = loaded_model(converted(family))(**inputs).logits
    assert torch.isfinite(logits).all()
