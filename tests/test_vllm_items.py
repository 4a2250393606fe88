"""What the plugin does to the items that vLLM's encoder returns, on stand-ins for vLLM's classes."""

import dataclasses
import types
from typing import Any

import pytest
import stub_vllm
import torch
from stub_vllm import PIXELS, QWEN, D, ModelConfig, build, config, model_class, tokens, vllm_config

from transformers_agci import inject_global_context
from transformers_agci.errors import InputError
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.vllm.injection import IMAGE_MARK

DEEPSTACK = "Qwen3VLForConditionalGeneration"

utils = stub_vllm.utils  # fixture: vLLM with the plugin registered


def test_each_image_gets_the_formula_by_itself(utils: types.ModuleType) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5}))
    model.items = (tokens(5, D, 0), tokens(3, D, 1))
    found = model.embed_multimodal(**PIXELS)
    assert [item.shape for item in found] == [(5, D), (3, D)]
    for item, before in zip(found, model.items):
        assert torch.equal(item, inject_global_context(before, 0.5))
        assert not torch.equal(item, before)
    assert type(model).__name__ == QWEN
    assert model.agci_images == 2


def test_images_of_equal_size_stay_one_tensor(utils: types.ModuleType) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5}))
    model.items = torch.stack([tokens(4, D, 0), tokens(4, D, 1)])
    found = model.embed_multimodal(**PIXELS)
    assert found.shape == (2, 4, D)
    assert torch.equal(found[1], inject_global_context(tokens(4, D, 1), 0.5))


@pytest.mark.parametrize(
    "inputs",
    [
        {"pixel_values_videos": 1},
        {"pixel_values_flat_video": 1},
        {"video_pixel_values": 1},
        {"video_embeds": 1},
        {"input_features_padded": 1},
        {"input_audio_features": 1},
        {"audio_values": 1},
    ],
)
def test_videos_and_audio_are_untouched(utils: types.ModuleType, inputs: dict[str, Any]) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5}))
    model.items = (tokens(5, D, 0),)
    assert model.embed_multimodal(**inputs, pixel_values=None) is model.items
    assert model.agci_images == 0


def test_image_embeds_are_images(utils: types.ModuleType) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5}))
    model.items = (tokens(5, D, 0),)
    (found,) = model.embed_multimodal(image_embeds=torch.zeros(1))
    assert torch.equal(found, inject_global_context(tokens(5, D, 0), 0.5))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({"pixel_values": 1, "pixel_values_videos": 1}, "cannot tell images"), ({"point_clouds": 1}, "point_clouds")],
)
def test_what_may_hold_images_is_no_guess(utils: types.ModuleType, inputs: dict[str, Any], said: str) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5}))
    model.items = (tokens(5, D, 0),)
    with pytest.raises(InputError, match=said):
        model.embed_multimodal(**inputs)


def test_deepstack_columns_are_untouched(utils: types.ModuleType) -> None:
    model = build(utils, config("qwen3_vl", **{LAMBDA_KEY: 0.5}), DEEPSTACK)
    item = tokens(5, 3 * D, 0)
    model.items = (item,)
    (found,) = model.embed_multimodal(**PIXELS)
    assert torch.equal(found[:, D:], item[:, D:])
    assert torch.equal(found[:, :D], inject_global_context(item[:, :D], 0.5))


def test_columns_that_nobody_expects_are_an_error(utils: types.ModuleType) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5}))
    model.items = (tokens(5, 3 * D, 0),)
    with pytest.raises(InputError, match=f"{3 * D} columns, where the decoder takes {D}"):
        model.embed_multimodal(**PIXELS)


def test_gemma3_crops_are_images_of_their_own(utils: types.ModuleType) -> None:
    model = build(utils, config("gemma3", mm_tokens_per_image=4, **{LAMBDA_KEY: 0.5}), "Gemma3ForConditionalGeneration")
    item = tokens(8, D, 0)
    model.items = (item,)
    (found,) = model.embed_multimodal(**PIXELS)
    halves = [inject_global_context(half, 0.5) for half in item.split(4)]
    assert torch.equal(found, torch.cat(halves))
    assert model.agci_images == 2
    model.items = (tokens(7, D, 0),)
    with pytest.raises(InputError, match="7 tokens"):
        model.embed_multimodal(**PIXELS)


def test_the_thinker_of_an_omni_checkpoint(utils: types.ModuleType) -> None:
    whole = config("qwen2_5_omni", thinker_config=config("qwen2_5_omni_thinker"), **{LAMBDA_KEY: 0.5})
    model = build(utils, whole, "Qwen2_5OmniThinkerForConditionalGeneration")
    model.items = (tokens(5, D, 0),)
    (found,) = model.embed_multimodal(**PIXELS)
    assert torch.equal(found, inject_global_context(tokens(5, D, 0), 0.5))


MOLMO = "Molmo2ForConditionalGeneration"
WORD, PATCH = 3, 9


def test_words_between_the_rows_of_an_image_are_untouched(utils: types.ModuleType) -> None:
    model = build(utils, config("molmo2", image_patch_id=PATCH, **{LAMBDA_KEY: 0.5}), MOLMO)
    ids = [[WORD, PATCH, PATCH, WORD, PATCH], [PATCH, WORD, PATCH]]
    model.items = (tokens(5, D, 0), tokens(3, D, 1))
    inputs = {"image_tokens": torch.tensor(ids[0] + ids[1]), "num_image_tokens": torch.tensor([5, 3])}
    found = model.embed_multimodal(pixel_values=torch.zeros(1), **inputs)
    for item, before, of_item in zip(found, model.items, ids, strict=True):
        patches = torch.tensor(of_item) == PATCH
        assert torch.equal(item[patches], inject_global_context(before[patches], 0.5))
        assert torch.equal(item[~patches], before[~patches])
        assert not torch.equal(item, before)
    assert model.agci_images == 2
    assert model.embed_multimodal(pixel_values_videos=torch.zeros(1)) is model.items


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "cannot tell which tokens of vLLM's Molmo2ForConditionalGeneration are image tokens: 'image_tokens'"),
        ({"image_tokens": torch.tensor([WORD] * 4), "num_image_tokens": torch.tensor([4])}, "do not fit the tokens"),
        ({"image_tokens": torch.tensor([WORD] * 4), "num_image_tokens": torch.tensor([5])}, "which tokens"),
    ],
)
def test_words_of_which_nothing_is_known_are_an_error(
    utils: types.ModuleType, inputs: dict[str, Any], said: str
) -> None:
    model = build(utils, config("molmo2", image_patch_id=PATCH, **{LAMBDA_KEY: 0.5}), MOLMO)
    model.items = (tokens(5, D, 0),)
    with pytest.raises(InputError, match=said):
        model.embed_multimodal(pixel_values=torch.zeros(1), **inputs)


class Processor:
    """Of a class whose requests hold images and pieces of videos alike."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> dict[str, Any]:
        return {"grid_thws": len(mm_items)}

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> dict[str, Any]:
        return {"grid_thws": "batched"}


@dataclasses.dataclass(frozen=True)
class Factories:
    processor: type


def kimi(utils: types.ModuleType) -> type:
    stock: Any = model_class("KimiK25ForConditionalGeneration")
    stock._processor_factory = Factories(Processor)
    found: type = utils.get_model_architecture(ModelConfig(config("kimi_k25", **{LAMBDA_KEY: 0.5}), stock, D))[0]
    assert stock._processor_factory.processor is Processor
    return found


def test_pieces_of_videos_beside_images_are_untouched(utils: types.ModuleType) -> None:
    model = kimi(utils)(vllm_config=vllm_config(ModelConfig(config("kimi_k25"), object, D)))
    model.items = (tokens(4, D, 0), tokens(4, D, 1))
    found = model.embed_multimodal(pixel_values=torch.zeros(1), **{IMAGE_MARK: torch.tensor([False, True])})
    assert found[0] is model.items[0]
    assert torch.equal(found[1], inject_global_context(model.items[1], 0.5))
    assert model.agci_images == 1
    assert list(model.inputs) == ["pixel_values"]
    for marks in ({}, {IMAGE_MARK: torch.tensor([True])}, {IMAGE_MARK: None}):
        with pytest.raises(InputError, match="the process that prepares the requests must have the plugin agci, too"):
            model.embed_multimodal(pixel_values=torch.zeros(1), **marks)


def test_the_processor_marks_the_images(utils: types.ModuleType) -> None:
    made: Any = kimi(utils)
    processor = made._processor_factory.processor()
    kinds = ["video_chunk", "image", "video_chunk"]
    items = types.SimpleNamespace(get_all=lambda: [{"type": kind} for kind in kinds])
    prepared = processor._apply_hf_processor_main({"vision_chunk": items}, {})
    assert prepared.pop(IMAGE_MARK).tolist() == [False, True, False]
    assert prepared == {"grid_thws": 1}
    assert processor._apply_hf_processor_main({}, {}) == {"grid_thws": 0}
    fields = processor._get_mm_fields_config(prepared, {})
    assert fields == {"grid_thws": "batched", IMAGE_MARK: ("vision_chunk", True)}
