"""The models that are measured: the embedded one, and Qwen2.5-VL's shape with random weights made on the device.

Random weights take nothing from a disk or a network, and cost what trained ones cost. The rows of Yes and No in the
output matrix are enlarged, so that the model answers like one that was trained: with one word.
"""

import argparse
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.inference.kernels import use_kernels
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prompt import answer_token_ids
from transformers_agci.inference.quick import ALL
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments

KEPT: dict[str, LoadedModel] | None = None  # models by name, where several commands share a process: first_gpu.py
LOUD = 1e5  # at 100 three prompts in a hundred begin their answer with another word, and are answered by generate


class Shape(NamedTuple):
    """Text and vision configuration."""

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    dtype: torch.dtype


# Qwen2.5-VL-7B-Instruct
SEVEN_B = Shape(
    "Qwen2.5-VL-7B, random weights",
    {
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]},
    },
    {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
    torch.bfloat16,
)
# The same with an eighth of the layers and narrow ones: for trying a command on a CPU.
SMALL = Shape(
    "small Qwen2.5-VL, random weights",
    SEVEN_B.text
    | {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "vocab_size": 2048,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]},
    },
    SEVEN_B.vision
    | {
        "depth": 4,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [3],
    },
    torch.float32,
)


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a script that measures a model: --random_7b, --small; without either the embedded model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--random_7b", action="store_true", help="Qwen2.5-VL-7B's shape, bfloat16: needs a GPU")
    which.add_argument("--small", action="store_true", help="the same shape made small: random weights on any machine")
    return parser


def chosen_model(args: argparse.Namespace) -> LoadedModel:
    """The model of the command line, with transformers' own vision tower (see `quick_layers`)."""
    if args.random_7b or args.small:
        return random_weights(SEVEN_B if args.random_7b else SMALL)
    return replace(load(LoadOptions(str(embedded_model_path()), vision="stock", kernels="stock")), quick=ALL)


def random_weights(shape: Shape) -> LoadedModel:
    """The shape with random weights, behind the embedded model's processor without its bounds on pixels."""
    if KEPT is None:
        return _random_weights(shape)
    if shape.name not in KEPT:
        KEPT[shape.name] = _random_weights(shape)
    return KEPT[shape.name]


def _random_weights(shape: Shape) -> LoadedModel:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    bounds = {"min_pixels": 4 * 28 * 28, "max_pixels": 1680 * 1680}
    small = replace(load(LoadOptions(str(embedded_model_path()), vision="stock", kernels="stock", **bounds)), quick=ALL)
    small.processor.tokenizer.model_max_length = shape.text["max_position_embeddings"]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ends = {"bos_token_id": 0, "eos_token_id": 2}  # within the small vocabulary
    config = Qwen2_5_VLConfig(
        text_config=shape.text | ends,
        vision_config=shape.vision,
        tie_word_embeddings=False,
        **{name: getattr(small.model.config, name) for name in names},
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        model: Any = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=shape.dtype).eval()
    _answer_yes_or_no(model, answer_token_ids(small.processor))
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = small.processor.tokenizer.eos_token_id
    identity = {
        **small.identity,
        "weights_sha256": None,
        "model": shape.name,
        "dtype": str(shape.dtype),
        "device": device.type,
    }
    return replace(small, model=model, device=device, identity=identity)


def _answer_yes_or_no(model: Any, ids: tuple[int, int]) -> None:
    """Two opposite rows of the output matrix that outweigh all others: one of them wins at (nearly) every position."""
    yes, no = ids
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight[yes] = LOUD * weight[yes]
        weight[no] = -weight[yes]


@contextmanager
def quick_layers(model: Any, names: Collection[str] = ALL, tower: bool = True) -> Iterator[str]:
    """The layers as `agci` runs them by default, or with some of the kernels only; says what they do.

    `tower`: the vision tower's attention and patch embedding, which have a switch of their own.
    """
    with ExitStack() as undo:
        told = []
        if tower:
            attention, embedding = use_segments(model), as_matrix_product(model)
            undo.callback(embedding.remove)
            undo.callback(attention.remove)
            why = f" because {attention.reason}" if attention.reason and torch.cuda.is_available() else ""
            told += [f"{attention.backend}{why}", embedding.backend]
        kernels = use_kernels(model, frozenset(names))
        undo.callback(kernels.remove)
        refused = [f"{name} off: {why}" for name, why in kernels.reasons if torch.cuda.is_available()]
        yield ", ".join([*told, *kernels.on, *refused]) or "stock layers"
