"""The plugin's rules, on stand-ins for vLLM's classes; with the real ones they are tested by `make vllm-test`."""

import contextlib
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
from stub_vllm import PIXELS, QWEN, D, ModelConfig, build, config, model_class, tokens, vllm_config

from transformers_agci import inject_global_context
from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.declaration import VllmClass
from transformers_agci.method import autoload
from transformers_agci.method.injection import injection_of
from transformers_agci.method.lam import LAMBDA_KEY, POSITION_KEY
from transformers_agci.vllm import plugin
from transformers_agci.vllm.injection import METHOD_KEY, find_model, served_classes
from transformers_agci.vllm.worker import STARTED_BY

BACKEND = "TransformersMultiModalForCausalLM"  # vLLM's, for models for which it has no class of its own
utils = stub_vllm.utils  # fixture: vLLM with the plugin registered


@pytest.mark.parametrize("keys", [{}, {LAMBDA_KEY: 0.0}, {LAMBDA_KEY: 0}, {POSITION_KEY: False}])
def test_without_lambda_the_model_is_stock(utils: types.ModuleType, keys: dict[str, Any]) -> None:
    stock = model_class(QWEN)
    assert utils.get_model_architecture(ModelConfig(config(**keys), stock, D)) == (stock, QWEN)


def test_the_switch_and_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is registered once in a process, whose engines may have the switch otherwise, both ways."""
    utils = stub_vllm.install(monkeypatch)
    stock = model_class(QWEN)
    keyed = ModelConfig(config(**{LAMBDA_KEY: 0.5}), stock, D)
    monkeypatch.setenv("TRANSFORMERS_AGCI", "0")
    plugin.register()
    once = utils.get_model_architecture
    for switch, is_stock in (("0", True), ("1", False), ("0", True)):
        monkeypatch.setenv("TRANSFORMERS_AGCI", switch)
        assert (utils.get_model_architecture(keyed)[0] is stock) == is_stock
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


def test_modules_of_transformers_in_a_draft_get_nothing(
    utils: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached: list[Any] = []
    monkeypatch.setattr(autoload, "_serve_lambda", attached.append)
    hf_config = config("aya_vision", **{LAMBDA_KEY: 0.5})
    draft = ModelConfig(hf_config, model_class("Draft", lambda _: OfTransformers(hf_config)), D, runner_type="draft")
    built = utils.get_model_architecture(draft)[0]
    assert built.__name__ == "Draft"
    built(vllm_config=vllm_config(draft))
    assert attached == []


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
    assert utils.get_model_architecture(draft)[0].__base__ is draft.architecture
    draft.hf_config = config()
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
