"""The plugin in classes of vLLM whose towers cannot be built here: for a GPU, or from their maker's whole checkpoint.

Such a class is made without its towers. What hands their output on, image by image, is vLLM's own code; in the towers'
place stands one that makes a row of each patch, so that an item with rows of anything else is seen. How many tokens an
image has, the prompt says: as many as the family's real processor writes. Run by `make vllm-test`.
"""

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tiny_families import IMG, ROWS, WIDTH, Piece

from transformers_agci import inject_global_context
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.declaration import VllmClass
from transformers_agci.vllm.injection import Served
from transformers_agci.vllm.plugin import injecting

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here: make vllm-test"),
]

LAM = 0.5
FORMS = ("tiled", "plain")
MERGE = 2  # patches of a side that make a token


@dataclass
class Case:
    """A class without its towers: what stands for them, and a call of `embed_multimodal`."""

    inputs: dict[str, Any]
    attributes: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    words: bool = False  # whether items hold the words of the prompt, too


class Tower(torch.nn.Module):
    """A function in the place of a tower."""

    spatial_merge_size = MERGE
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def prepare_meta(self, grid: torch.Tensor) -> None:
        """dots3.note's tower is asked for it."""

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return self.function(*args, **keywords)


def projected(values: torch.Tensor, columns: int = WIDTH) -> torch.Tensor:
    """[..., V] -> [..., columns], the same for the same values."""
    matrix = torch.randn(values.shape[-1], columns, generator=torch.Generator().manual_seed(1))
    return values.float() @ matrix


def merged(pixel_values: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Patches [P, V], those of a token one after the other."""
    return projected(pixel_values.reshape(len(pixel_values) // MERGE**2, -1))


def squares(pixels: torch.Tensor, side: int = 16) -> torch.Tensor:
    """[B, 3, H, W] -> [B, 3, H / side, W / side]."""
    return torch.nn.functional.avg_pool2d(pixels, side)


def listed(pixels: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return pixels.flatten(2).transpose(1, 2)


def joined(pieces: list[Piece], name: str) -> torch.Tensor:
    return torch.cat([piece.pixels[name] for piece in pieces])


def grids(pieces: list[Piece], tower: str) -> Case:
    inputs = {name: joined(pieces, name) for name in ("pixel_values", "image_grid_thw")}
    return Case(inputs, {tower: Tower(merged), "use_data_parallel": False})


def glm5(pieces: list[Piece]) -> Case:
    case = grids(pieces, "visual")
    case.attributes["is_multimodal_pruning_enabled"] = False
    return case


def inkling(pieces: list[Piece]) -> Case:
    counts = torch.tensor([len(piece.pixels["pixel_values"]) for piece in pieces])
    inputs = {"pixel_values": joined(pieces, "pixel_values"), "num_patches": counts}
    return Case(inputs, {"visual": Tower(lambda patches: projected(patches.flatten(1))), "audio": None})


def muse(pieces: list[Piece]) -> Case:
    """Whole images; a token is a square of 8 pixels."""
    sizes = [piece.pixels["image_grid_thw"][0].tolist() for piece in pieces]
    pixels = [torch.randn(3, 4 * height, 4 * width) for _, height, width in sizes]
    inputs = {
        "image_pixel_values": pixels,
        "image_feature_sizes": torch.tensor([piece.ids.count(IMG) for piece in pieces]),
    }
    tower = Tower(lambda images: torch.cat([projected(listed(squares(each[None], 8))[0]) for each in images]))
    same = torch.nn.Identity()
    return Case(
        inputs,
        {
            "vision_encoder": tower,
            "vision_adapter": same,
            "vision_projection": same,
            "perception_emb_norm": same,
        },
    )


def step(pieces: list[Piece]) -> Case:
    inputs = {
        "pixel_values": joined(pieces, "pixel_values"),
        "patch_pixel_values": joined(pieces, "pixel_values_local"),
        "num_patches": joined(pieces, "num_local_patches"),
    }
    tower = Tower(lambda pixels: projected(listed(squares(pixels))))
    projector = Tower(lambda rows: (rows, None))
    return Case(inputs, {"vision_model": tower, "vit_large_projector": projector, "use_data_parallel": False})


def nemotron(pieces: list[Piece]) -> Case:
    """A grid of patches of 4 pixels, as large as the image asks for."""
    sizes = [piece.pixels["image_grid_hw"][0].tolist() for piece in pieces]
    images = [torch.randn(3, 4 * height, 4 * width) for height, width in sizes]
    inputs = {
        "pixel_values_flat": images,
        "imgs_sizes": [(4 * height, 4 * width) for height, width in sizes],
        "num_tokens_per_image": [piece.ids.count(IMG) for piece in pieces],
    }
    attributes = {
        "vision_model": Tower(lambda pixels, imgs_sizes: (None, projected(pixels, 8))),
        "mlp1": Tower(projected),
        "vision_final_layernorm": None,
        "dynamic_resolution": True,
        "patch_size": 4,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
    }
    return Case(inputs, attributes)


def ocr(pieces: list[Piece], towers: dict[str, Any]) -> Case:
    """Columns and rows of crops; one and one: none."""
    inputs = {
        "pixel_values": joined(pieces, "pixel_values"),
        "images_crop": joined(pieces, "pixel_values_local"),
        "images_spatial_crop": joined(pieces, "patches_grid").clamp(min=1),
    }
    marks = {name: torch.nn.Parameter(torch.randn(WIDTH)) for name in ("view_seperator", "image_newline")}
    return Case(inputs, {**towers, **marks, "vision_config": types.SimpleNamespace(image_size=64)})


def by_queries(pieces: list[Piece]) -> Case:
    """DeepSeek-OCR 2 reads these views with 144 queries each."""
    queries = projected(torch.randn(144, 3, generator=torch.Generator().manual_seed(2)))
    towers = {
        "sam_model": torch.nn.Identity(),
        "qwen2_model": Tower(lambda pixels: projected(pixels.mean((2, 3)))[:, None] + queries),
        "projector": torch.nn.Identity(),
    }
    return ocr(pieces, towers)


def by_lines(pieces: list[Piece]) -> Case:
    """Unlimited-OCR lays the squares of two towers beside each other; the second has a token more in front."""
    towers = {
        "sam_model": Tower(squares),
        "vision_model": Tower(lambda pixels, seen: torch.nn.functional.pad(listed(seen), (0, 0, 1, 0))),
        "projector": Tower(projected),
    }
    return ocr(pieces, towers)


def molmo(pieces: list[Piece]) -> Case:
    inputs = {
        "pixel_values": joined(pieces, "pixel_values"),
        "image_token_pooling": joined(pieces, "image_token_pooling"),
        "image_num_pooled_patches": torch.tensor([len(piece.pixels["image_token_pooling"]) for piece in pieces]),
        "image_num_patches": torch.tensor([16 * len(piece.pixels["pixel_values"]) for piece in pieces]),
        "image_tokens": torch.tensor([token for piece in pieces for token in piece.ids]),
        "num_image_tokens": torch.tensor([len(piece.ids) for piece in pieces]),
    }

    def pooled(images: torch.Tensor, token_pooling: torch.Tensor) -> torch.Tensor:
        return projected(images.flatten(0, 2)[token_pooling[0]].mean(1))

    words = torch.nn.Embedding(256, WIDTH).requires_grad_(False)
    decoder = types.SimpleNamespace(embed_input_ids=words)
    attributes = {
        "vision_backbone": Tower(pooled),
        "get_language_model": lambda: decoder,
        "img_patch_id": IMG,
    }
    return Case(inputs, attributes, {"image_patch_id": IMG}, words=True)


CASES: dict[str, Callable[[list[Piece]], Case]] = {
    "deepseek_ocr2": by_queries,
    "dots3_note": lambda pieces: grids(pieces, "visual"),
    "glm5_next": glm5,
    "inkling_mm_model": inkling,
    "minimax_m3_vl": lambda pieces: grids(pieces, "vision_tower"),
    "molmo2": molmo,
    "muse_glimmer": muse,
    "nemotron_h_omni": nemotron,
    "step3p7": step,
    "unlimited_ocr": by_lines,
}


FOR_A_GPU = (
    "vllm.third_party.deep_gemm",
    "vllm.vllm_flash_attn",
    "vllm.vllm_flash_attn.flash_attn_interface",
)


class NotHere(types.ModuleType):
    """A module of kernels for a GPU, none of which is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return nothing


def nothing(*_: Any, **__: Any) -> None:
    """In the place of a kernel."""


def vllm_class(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's class of this `__name__`."""
    from vllm.model_executor.models.registry import _VLLM_MODELS

    (module,) = {module for module, found in _VLLM_MODELS.values() if found == name}
    place = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
    if module == "vllm.models.dots3_note":  # its file of the decoder wants them at once
        from vllm.v1.attention.backends import fa_utils

        for kernels in FOR_A_GPU:
            monkeypatch.setitem(sys.modules, kernels, NotHere(kernels))
        monkeypatch.setattr(fa_utils, "compile_flash_attn_varlen_func_from_specs", nothing, raising=False)
    return getattr(import_module(place), name)


@pytest.mark.parametrize("model_type", CASES)
def test_an_item_is_one_image_and_nothing_else(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [ROWS[model_type].piece(form, generator) for form in FORMS]
    case, declared = CASES[model_type](pieces), SUPPORTED_FAMILIES[model_type].vllm
    assert isinstance(declared, VllmClass)
    stock = vllm_class(declared.name, monkeypatch)
    config = types.SimpleNamespace(text_config=types.SimpleNamespace(hidden_size=WIDTH), **case.config)
    ours = injecting(stock, Served(LAM, "agci", declared, WIDTH))
    model = ours.__new__(ours)
    torch.nn.Module.__init__(model)
    for name, value in {**case.attributes, "config": config, "_agci_config": config}.items():
        setattr(model, name, value)
    with torch.inference_mode():
        before = stock.embed_multimodal(model, **case.inputs)
        after = model.embed_multimodal(**case.inputs)
    assert len(before) == len(after) == model.agci_images == len(pieces)
    for piece, item, injected in zip(pieces, before, after, strict=True):
        of_image = torch.tensor([token == IMG for token in piece.ids] if case.words else [True] * len(item))
        assert int(of_image.sum()) == piece.ids.count(IMG)
        assert torch.equal(injected[of_image], inject_global_context(item[of_image], LAM))
        assert torch.equal(injected[~of_image], item[~of_image])
        assert (injected - item).abs().max() > 0.01
    assert torch.cat(list(before)).unique(dim=0).shape[0] > len(pieces)  # the rows are of patches
