"""The plugin's rules, on stand-ins for vLLM's classes; with the real ones they are tested by `make vllm-test`."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import stub_vllm
import torch
from stub_vllm import ModelConfig, model_class, tokens, vllm_config

from transformers_agci import inject_global_context
from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.declaration import VllmClass
from transformers_agci.method import autoload
from transformers_agci.method.injection import injection_of
from transformers_agci.method.lam import LAMBDA_KEY, POSITION_KEY
from transformers_agci.vllm import plugin
from transformers_agci.vllm.injection import IMAGE_MARK, METHOD_KEY, find_model, served_classes
from transformers_agci.vllm.worker import STARTED_BY

BACKEND = "TransformersMultiModalForCausalLM"  # vLLM's, for models for which it has no class of its own
QWEN, DEEPSTACK = "Qwen2VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"
D = 6  # columns of the decoder's input
PIXELS = {"pixel_values": torch.zeros(1), "image_grid_thw": torch.zeros(1)}


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """vLLM's module that says which class a model is built as, with the plugin registered."""
    utils = stub_vllm.install(monkeypatch)
    plugin.register()
    return utils


def config(model_type: str = "qwen2_vl", **keys: Any) -> Any:
    return types.SimpleNamespace(model_type=model_type, **keys)


def build(utils: types.ModuleType, hf_config: Any, name: str = QWEN, **engine: Any) -> Any:
    model_config = ModelConfig(hf_config, model_class(name), D)
    return utils.get_model_architecture(model_config)[0](vllm_config=vllm_config(model_config, **engine), prefix="")


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


@pytest.mark.parametrize("keys", [{}, {LAMBDA_KEY: 0.0}, {LAMBDA_KEY: 0}, {POSITION_KEY: False}])
def test_without_lambda_the_model_is_stock(utils: types.ModuleType, keys: dict[str, Any]) -> None:
    stock = model_class(QWEN)
    assert utils.get_model_architecture(ModelConfig(config(**keys), stock, D)) == (stock, QWEN)


def test_the_switch_and_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = stub_vllm.install(monkeypatch)
    stock = utils.get_model_architecture
    monkeypatch.setenv("TRANSFORMERS_AGCI", "0")
    plugin.register()
    assert utils.get_model_architecture is stock
    monkeypatch.delenv("TRANSFORMERS_AGCI")
    plugin.register()
    once = utils.get_model_architecture
    assert once is not stock
    plugin.register()
    assert utils.get_model_architecture is once


def test_every_module_of_vllm_chooses_so(utils: types.ModuleType) -> None:
    """The processes that prepare requests, and the loader of tensorizer, have the function from elsewhere."""
    package = sys.modules["vllm.model_executor.model_loader"]
    assert package.get_model_architecture is utils.get_model_architecture
    assert getattr(package.get_model_architecture, "chooses_agci", False)


def test_a_version_without_the_seam_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    utils = stub_vllm.install(monkeypatch)
    del utils.get_model_architecture
    with caplog.at_level(logging.ERROR):
        plugin.register()
    assert f"{LAMBDA_KEY} does nothing" in caplog.text


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


class OfTransformers:
    """A model that transformers builds from a config."""

    def __init__(self, hf_config: Any) -> None:
        self.config = hf_config
        autoload.attach_from_config(self)


@pytest.mark.parametrize("name", [BACKEND, "TransformersMultiModalMoEForCausalLM"])
def test_modules_of_transformers_that_vllm_runs_get_it_once(
    utils: types.ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    attached: list[Any] = []
    monkeypatch.setattr(autoload, "_serve_lambda", attached.append)
    hf_config = config("aya_vision", **{LAMBDA_KEY: 0.5})
    modules = model_class(name, lambda _: OfTransformers(hf_config))
    model_config = ModelConfig(hf_config, modules, D)
    model = utils.get_model_architecture(model_config)[0](vllm_config=vllm_config(model_config))
    assert attached == []
    assert model.agci.words == f"lambda 0.5 ({name})"
    model.items = [tokens(4, D, 0)]
    (found,) = model.embed_multimodal(**PIXELS)
    assert torch.equal(found, inject_global_context(tokens(4, D, 0), 0.5))
    alone = OfTransformers(hf_config)  # and outside of vLLM as ever
    assert attached == [alone]


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


def test_a_control_of_the_config(utils: types.ModuleType) -> None:
    model = build(utils, config(**{LAMBDA_KEY: 0.5, METHOD_KEY: "random-1"}))
    model.items = (tokens(5, D, 0),)
    (found,) = model.embed_multimodal(**PIXELS)
    control = injection_of("random-1")
    assert control is not None
    assert torch.equal(found, control(tokens(5, D, 0), 0.5))


@pytest.mark.parametrize(
    ("name", "hf_config", "said"),
    [
        ("NewModel", config("new", **{LAMBDA_KEY: 0.5}), "does not serve vLLM's NewModel"),
        (QWEN, config("tarsier", **{LAMBDA_KEY: 0.5}), "model_type 'tarsier'"),
        ("Backend", config("janus", **{LAMBDA_KEY: 0.5}), "no class of its own"),
        ("Backend", config("muse_spark", **{LAMBDA_KEY: 0.5}), r"transformers .* \(before 5.20\) does not know it"),
        (BACKEND, config(**{LAMBDA_KEY: 0.5}), f"it is served as {QWEN}"),
        (QWEN, config(**{POSITION_KEY: True}), "position_balance, which turns BaPA on"),
        (QWEN, config(text_config=config("qwen2", **{POSITION_KEY: True})), "position_balance, which turns BaPA on"),
        (QWEN, config(**{LAMBDA_KEY: -1}), "finite number >= 0"),
        (QWEN, config(**{LAMBDA_KEY: "0.5"}), "finite number >= 0"),
        (QWEN, config(**{LAMBDA_KEY: 0.5, METHOD_KEY: "magic"}), "must be one of agci"),
    ],
)
def test_what_is_not_served_is_an_error(utils: types.ModuleType, name: str, hf_config: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(utils, hf_config, name)


def test_recorded_encoders_are_refused(utils: types.ModuleType) -> None:
    with pytest.raises(InputError, match="cudagraph_mm_encoder"):
        build(utils, config(**{LAMBDA_KEY: 0.5}), cudagraph_mm_encoder=True)
    build(utils, config(), cudagraph_mm_encoder=True)  # the unmodified model may have them


def test_decoder_and_draft_are_no_models_of_their_own(utils: types.ModuleType) -> None:
    hf_config = config(**{LAMBDA_KEY: 0.5})
    decoder = model_class("Qwen2ForCausalLM")
    chosen = []

    def build_decoder(engine: Any) -> None:
        chosen.append(utils.get_model_architecture(ModelConfig(hf_config, decoder, D))[0])

    model_config = ModelConfig(hf_config, model_class(QWEN, build_decoder), D)
    utils.get_model_architecture(model_config)[0](vllm_config=vllm_config(model_config))
    assert chosen == [decoder]
    draft = ModelConfig(hf_config, model_class("Qwen3_5MTP"), D, runner_type="draft")
    assert utils.get_model_architecture(draft)[0] is draft.architecture
    with pytest.raises(InputError):  # but a model that is nothing else is not served silently
        utils.get_model_architecture(ModelConfig(hf_config, decoder, D))


def test_one_line_in_the_log_of_an_engine(utils: types.ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for rank in range(3):
            build(utils, config(**{LAMBDA_KEY: 0.5}), rank=rank)
        build(utils, config())
    assert [record.message for record in caplog.records] == [
        f"AGCI is on: lambda 0.5 ({QWEN}). TRANSFORMERS_AGCI=0 turns it off."
    ]


def test_a_store_of_encoded_images_is_named(utils: types.ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(utils, config(**{LAMBDA_KEY: 0.5}), ec_transfer_config=object(), kv_transfer_config=None)
    assert "ec_transfer_config: what is stored there belongs to this lambda" in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
@pytest.mark.parametrize("ours", [True, False])
def test_vllms_processes_end_with_the_one_that_started_them(ours: bool) -> None:
    child = (
        "import time; from transformers_agci.vllm.worker import end_with_parent as end; end(); "
        "print('up', flush=True); time.sleep(60)"
    )
    parent = f"""
import os, subprocess, sys
if {ours}: os.environ["{STARTED_BY}"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""
    started = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    try:
        started.kill()
        started.wait()
        assert ended(pid) == ours
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    """Whether the process is gone, or will be in a moment."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_the_families_name_their_classes_of_vllm() -> None:
    declared = {model_type: family.vllm for model_type, family in SUPPORTED_FAMILIES.items()}
    classes = {each.name for each in declared.values() if isinstance(each, VllmClass)}
    assert set(served_classes()) == classes
    assert len(classes) == 51  # of which one, transformers' modules, serves eight families
    assert sum(isinstance(each, VllmClass) for each in declared.values()) == 58
    assert all(isinstance(family.vllm, VllmClass) for family in SUPPORTED_FAMILIES.values() if family.in_paper)


def test_a_checkpoint_with_code_of_its_own_is_served_where_the_class_is_the_same() -> None:
    assert find_model("Ernie4_5_VLMoeForConditionalGeneration", "ernie4_5_moe_vl").name.startswith("Ernie")
    with pytest.raises(InputError, match="it is served as InternS1ForConditionalGeneration"):
        find_model("InternVLChatModel", "internvl_chat")


def test_the_document_names_every_family_that_is_served_and_every_one_that_is_not() -> None:
    text = " ".join((Path(__file__).parents[1] / "docs" / "vllm.md").read_text().split())
    served, _, others = (
        text.partition("## Which models ")[2].partition("## The engine vllm ")[0].partition("Not served: ")
    )
    for family in SUPPORTED_FAMILIES.values():
        assert family.name in (served if isinstance(family.vllm, VllmClass) else others)


def test_vllm_finds_the_plugin() -> None:
    found = importlib.metadata.distribution("transformers-agci").entry_points
    (point,) = [each for each in found if each.group == "vllm.general_plugins"] or [None]
    if point is None:
        pytest.skip("installed before the plugin was there: pip install --editable . again")
    assert point.load() is plugin.register
