"""Images told apart in prompts of the real processors: tiled and whole ones, adjacent and with text between.

How many tokens an image has is known from a prompt that holds it alone. The tokenizer is small; the marks between
tiles are one token each, or spelled in several.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tiny_checkpoints import random_image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from transformers_agci import SUPPORTED_FAMILIES
from transformers_agci.families import ForwardCall
from transformers_agci.method.image_positions import image_positions

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="4.57 builds its processors otherwise; prompts are the same"
)

BIG, SMALL = random_image(1, 84, 28), random_image(2, 28, 28)
ROWS = [(BIG,), (SMALL,), (BIG, SMALL), (SMALL, BIG), (SMALL, SMALL), (BIG, BIG), (SMALL, BIG, SMALL), (SMALL,) * 4]
BETWEEN = ["", "\n", " and then a dog "]


def tokenizer(words: Sequence[str], specials: Sequence[str], **named: str) -> Any:
    """Byte-level BPE without merges: what is not special is spelled letter by letter."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *specials, *words])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(letter, len(vocabulary))
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<pad>", "<s>", "</s>", *specials])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=named,
        model_input_names=["input_ids", "attention_mask"],
    )


SQUARE = {"height": 28, "width": 28}


def image_processor(name: str) -> Any:
    """The class; before 5.0 some had a quick twin only."""
    return getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)


def aya(marks: Sequence[str]) -> tuple[Any, str, str]:
    tiles = ["TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))]
    named = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]
    processor = transformers.AyaVisionProcessor(
        image_processor("GotOcr2ImageProcessor")(size=SQUARE, min_patches=1, max_patches=4, crop_to_patches=True),
        tokenizer([], [*named, *(tiles if marks else [])]),
        patch_size=14,
        img_size=28,
    )
    return processor, "<image>", "<|IMG_PATCH|>"


def idefics(marks: Sequence[str], name: str = "Idefics3", split: bool = True) -> tuple[Any, str, str]:
    tiles = ["<global-img>", *(f"<row_{row}_col_{col}>" for row, col in product(range(1, 5), repeat=2))]
    specials = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", *(tiles if marks else ["<global-img>"])]
    more = {} if name != "SmolVLM" else {"video_processor": transformers.SmolVLMVideoProcessor()}
    if name == "GraniteDocling":
        sizes: dict[str, Any] = {"size": SQUARE, "max_patches": 4}
    else:
        sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": split}
    images = image_processor(f"{name}ImageProcessor")(**sizes)
    words = tokenizer([], specials, image_token="<image>", fake_image_token="<fake_token_around_image>")
    processor = getattr(transformers, f"{name}Processor")(images, words, image_seq_len=4, **more)
    return processor, "<image>", "<image>"


def llama(marks: Sequence[str]) -> tuple[Any, str, str]:
    names = ["image", "image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator"]
    processor = transformers.Llama4Processor(
        image_processor("Llama4ImageProcessor")(size=SQUARE, max_patches=4),
        tokenizer([], [f"<|{name}|>" for name in names]),
        patch_size=7,
    )
    return processor, "<|image|>", "<|patch|>"


def cohere(marks: Sequence[str]) -> tuple[Any, str, str]:
    named = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    images = image_processor("Cohere2VisionImageProcessor")(
        size=SQUARE, min_patches=1, max_patches=4, crop_to_patches=True, patch_size=2
    )
    return transformers.Cohere2VisionProcessor(images, tokenizer([], list(named.values()), **named)), *[
        "<|IMG_PATCH|>"
    ] * 2


def ovis(marks: Sequence[str]) -> tuple[Any, str, str]:
    names = ["<image>", *(f"<IMG_{name}>" for name in ("START", "ATOM", "GRID", "COL", "ROW", "END"))]
    images = image_processor("Ovis2ImageProcessor")(size=SQUARE, min_patches=1, max_patches=4, crop_to_patches=True)
    return transformers.Ovis2Processor(images, tokenizer([], names), image_seq_length=4), "<image>", "<IMG_ATOM>"


def lfm(marks: Sequence[str]) -> tuple[Any, str, str]:
    tiles = ["<|img_thumbnail|>", *(f"<|img_row_{r}_col_{c}|>" for r, c in product(range(1, 5), repeat=2))]
    specials = ["<image>", "<|image_start|>", "<|image_end|>", *(tiles if marks else [])]
    images = image_processor("Lfm2VlImageProcessor")(
        tile_size=32, encoder_patch_size=8, downsample_factor=2, min_image_tokens=1, max_image_tokens=4, max_tiles=4
    )
    return transformers.Lfm2VlProcessor(images, tokenizer([], specials)), "<image>", "<image>"


def docling(marks: Sequence[str]) -> tuple[Any, str, str]:
    return idefics(["x"], "GraniteDocling")


PROCESSORS: dict[str, Callable[[Sequence[str]], tuple[Any, str, str]]] = {
    "aya_vision": aya,
    "idefics3": idefics,
    "smolvlm": lambda marks: idefics(marks, "SmolVLM"),
    "smolvlm whole": lambda marks: idefics(marks, "SmolVLM", split=False),
    "granite_docling": docling,
    "llama4": llama,
    "cohere2_vision": cohere,
    "ovis2": ovis,
    "lfm2_vl": lfm,
}


@cache
def processor_of(family: str, marks: str) -> tuple[Any, str, str]:
    if family.startswith("smolvlm"):  # asks for num2words, which only videos need
        transformers.models.smolvlm.processing_smolvlm.num2words = str
    return PROCESSORS[family](marks)


def processed(family: str, marks: str, prompts: list[str], images: list[list[Image.Image]]) -> tuple[Any, int]:
    processor, _, token = processor_of(family, marks)
    made = processor(text=prompts, images=images, padding=True, return_tensors="pt")
    return made, processor.tokenizer.convert_tokens_to_ids(token)


def found(family: str, made: Any, token: int) -> list[tuple[int, int]]:
    """(row, tokens) of each image that we find."""
    text = SimpleNamespace(bos_token_id=1, pad_token_id=0)
    vision = SimpleNamespace(patch_size=7 if family.startswith("granite") else 14)
    config = SimpleNamespace(
        image_token_id=token, downsample_factor=2, scale_factor=2, vision_config=vision, get_text_config=lambda: text
    )
    call = ForwardCall(
        input_ids=made["input_ids"],
        attention_mask=made["attention_mask"],
        pixel_values=made["pixel_values"],
        arguments=dict(made),
    )
    vlm = SimpleNamespace(config=config)
    images = image_positions(vlm, SUPPORTED_FAMILIES[family.split()[0]], call, made["input_ids"] == token)
    return [(image.row, len(image)) for image in images]


@cache
def tokens_alone(family: str, marks: str, number: int) -> int:
    image = (BIG, SMALL)[number]
    mark = processor_of(family, marks)[1]
    made, token = processed(family, marks, [f"<s>{mark} What is it?"], [[image]])
    return int((made["input_ids"] == token).sum())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("between", BETWEEN, ids=["adjacent", "line break", "text"])
@pytest.mark.parametrize(
    ("family", "marks"),
    [
        (family, marks)
        for family in PROCESSORS
        for marks in ("one token", "")
        if marks or family in ("aya_vision", "idefics3", "smolvlm", "lfm2_vl")
    ],
)
def test_images_of_real_prompts(family: str, marks: str, between: str) -> None:
    if not hasattr(transformers, f"{processor_name(family)}"):
        pytest.skip(f"this transformers has no {family}")
    mark = processor_of(family, marks)[1]
    for row in ROWS:
        prompt = "<s>" + between.join([mark] * len(row)) + " What is it?"
        wanted = [(0, tokens_alone(family, marks, (BIG, SMALL).index(image))) for image in row]
        made, token = processed(family, marks, [prompt], [list(row)])
        assert found(family, made, token) == wanted, (family, between, len(row))
    if "whole" not in family:
        assert tokens_alone(family, marks, 0) != tokens_alone(family, marks, 1)


def test_a_batch_of_real_prompts() -> None:
    """Rows of three, no, one and two images, padded on the left."""
    mark = processor_of("idefics3", "one token")[1]
    rows: list[list[Image.Image]] = [[SMALL, BIG, SMALL], [BIG], [SMALL, SMALL]]
    prompts = ["<s>" + mark * len(row) + " What?" for row in rows]
    made, token = processed("idefics3", "one token", prompts, rows)
    small, big = (tokens_alone("idefics3", "one token", number) for number in (1, 0))
    assert found("idefics3", made, token) == [(0, small), (0, big), (0, small), (1, big), (2, small), (2, small)]


def processor_name(family: str) -> str:
    names = {
        "aya_vision": "AyaVision",
        "idefics3": "Idefics3",
        "smolvlm": "SmolVLM",
        "granite_docling": "GraniteDocling",
    }
    names |= {"llama4": "Llama4", "cohere2_vision": "Cohere2Vision", "ovis2": "Ovis2", "lfm2_vl": "Lfm2Vl"}
    return f"{names[family.split()[0]]}Processor"


def test_a_prompt_that_ends_in_an_image_is_refused() -> None:
    """Nothing then says what follows an image."""
    ids = torch.tensor([[1, 3, 30, 30, 4, 3, 30, 30]])
    call = ForwardCall(input_ids=ids, pixel_values=torch.zeros(2, 3, 4, 4))
    vlm = SimpleNamespace(config=SimpleNamespace(image_token_id=30))
    with pytest.raises(ValueError, match="ends with an image token"):
        image_positions(vlm, SUPPORTED_FAMILIES["aya_vision"], call, ids == 30)


# S, E: marks; L: line break of a tile; T, W: words; I: an image of two tokens. What cannot be known raises.
WORDS = {"S": 3, "E": 4, "L": 5, "T": 50, "W": 51, "B": 1}


@pytest.mark.parametrize(
    ("family", "prompt", "wanted"),
    [
        ("cohere2_vision", "B S I L I L I L E T", [6]),
        ("cohere2_vision", "B S I L I L I L E T S I L E T", [6, 2]),
        ("cohere2_vision", "B I T I T I T", None),  # what begins the row is no mark
        ("cohere2_vision", "B W I T I T I T W T W", None),  # nor are words
        ("cohere2_vision", "B W I T I T I T W W", None),
        ("aria", "B S I I E T", [4]),
        ("aria", "B S I E S I I E T", [2, 4]),
        ("aria", "B T I I T W", None),
        ("aria", "B W T I I W T", None),
        ("aria", "B I I T", [2, 2]),
        ("got_ocr2", "B S I I I E T", [6]),
        ("got_ocr2", "B W I I I W", None),
    ],
)
def test_prompts_written_by_hand(family: str, prompt: str, wanted: list[int] | None) -> None:
    tokens = [[30, 30] if word == "I" else [WORDS[word]] for word in prompt.split()]
    ids = torch.tensor([[token for word in tokens for token in word]])
    config = SimpleNamespace(image_token_id=30, get_text_config=lambda: SimpleNamespace(bos_token_id=1, pad_token_id=0))
    call = ForwardCall(input_ids=ids, pixel_values=torch.zeros(prompt.count("I"), 3, 4, 4))
    vlm, rule = SimpleNamespace(config=config), SUPPORTED_FAMILIES[family]
    if wanted is None:
        with pytest.raises(ValueError, match="AGCI cannot tell whether"):
            image_positions(vlm, rule, call, ids == 30)
        return
    assert [len(image) for image in image_positions(vlm, rule, call, ids == 30)] == wanted
