"""The Python API on models: live, attached, with LoRA or a rival, served, and several threads with one."""

import re
import threading
from pathlib import Path
from typing import Any

import api_run
import pytest
import torch
from api_run import QUIET, live
from stub_server import Says, completion, stub_server

import transformers_agci
from transformers_agci.api.models import as_model
from transformers_agci.api.probe import ProbeRun
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.live import fingerprint
from transformers_agci.method.rivals.handle import attach_from_position_key
from transformers_agci.method.self_check import evaluating

data = api_run.data  # fixture
model = api_run.model  # fixture
run = api_run.run  # fixture


def test_a_live_model_answers_like_the_one_from_disk_and_is_left_as_it_was(
    model: Engine, data: ProbeData, run: ProbeRun
) -> None:
    module, processor = live(model)
    side, template = processor.tokenizer.padding_side, processor.chat_template
    module.train()
    module.model.visual.eval()
    processor.tokenizer.padding_side = "right"
    try:
        wrapped = transformers_agci.wrap(module, processor)
        assert "first_token" in wrapped.notes["kernels"]  # what answers; nothing is put on its layers
        assert "norms" not in wrapped.notes["kernels"]
        found = transformers_agci.probe(wrapped, data, [0, 0.5], **QUIET)
        assert module.training and module.model.language_model.training and not module.model.visual.training
        assert processor.tokenizer.padding_side == "right" and processor.chat_template == template
    finally:
        module.eval()
        processor.tokenizer.padding_side = side
    assert (found.to_pandas()["prediction"] == run.to_pandas()["prediction"]).all()
    assert (found.to_pandas()["margin"] - run.to_pandas()["margin"]).abs().max() < 1e-4


def test_an_attached_model_is_probed_at_its_lambda_and_keeps_it(model: Engine, data: ProbeData, run: ProbeRun) -> None:
    module, processor = live(model)
    handle = transformers_agci.attach(module, 0.5)
    try:
        found = transformers_agci.probe(transformers_agci.wrap(module, processor), data, **QUIET)
        assert (handle.lam, handle.method) == (0.5, "agci")
    finally:
        handle.detach()
    assert list(found.to_pandas()["lambda"].unique()) == [0.5]
    at_half = run.to_pandas()[lambda frame: frame["lambda"] == 0.5].reset_index()
    assert (found.to_pandas()["margin"] - at_half["margin"]).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_a_model_with_lora_is_probed_and_another_state_of_it_does_not_go_on(data: ProbeData, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    module, processor = live(transformers_agci.load())
    torch.manual_seed(0)
    tuned = get_peft_model(module, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    first = transformers_agci.probe(transformers_agci.wrap(tuned, processor), data, [0.5], folder=tmp_path, **QUIET)
    assert len(first.to_pandas()) == 72
    with tuned.disable_adapter():
        stock = transformers_agci.probe(transformers_agci.wrap(tuned, processor), data, [0.5], **QUIET)
    assert (first.to_pandas()["margin"] - stock.to_pandas()["margin"]).abs().max() > 1e-3
    with torch.no_grad():
        next(parameter for name, parameter in tuned.named_parameters() if "lora_B" in name).add_(1.0)
    with pytest.raises(InputError, match="live_weights_sha256"):
        transformers_agci.probe(transformers_agci.wrap(tuned, processor), data, [0.5], folder=tmp_path, **QUIET)


def test_a_fingerprint_sees_a_changed_value_and_eval_mode_ends_with_an_error(model: Engine) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout())
    before = fingerprint(layer)
    layer[0].weight.data[0, 0] += 1
    assert fingerprint(layer) != before
    layer[1].eval()
    with pytest.raises(KeyError), evaluating(layer):
        assert not layer.training
        raise KeyError
    assert (layer.training, layer[0].training, layer[1].training) == (True, True, False)


def test_mistakes_about_models_are_sentences(model: Engine) -> None:
    with pytest.raises(InputError, match=r"has no option `dtyp`\. Did you mean `dtype`"):
        transformers_agci.load(dtyp="float32")
    for given, said in (
        ({"max_pixels": "many"}, "`max_pixels` must be a whole number or None, but is 'many'."),
        ({"load_in_4bit": 1}, "`load_in_4bit` must be True or False, but is 1."),
        ({"dtype": "float8"}, "`dtype` must be one of auto, float32, bfloat16, float16, but is 'float8'."),
        ({"dtype": torch.int8}, "`dtype` must be one of auto, float32, bfloat16, float16, but is 'int8'."),
        ({"engine": 5}, "`engine` must be a text, but is 5."),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            transformers_agci.load(**given)
    with pytest.raises(InputError, match="a model of transformers that is in memory, but was given 'x'"):
        transformers_agci.attach("x", lam=0.5)
    with pytest.raises(InputError, match="`base_url` is for the engine openai"):
        transformers_agci.load(base_url="http://localhost/v1")
    with pytest.raises(InputError, match="The processor must be one for text and images"):
        transformers_agci.wrap(live(model)[0], live(model)[1].tokenizer)
    with pytest.raises(InputError, match="There is no model folder"):
        as_model("./nowhere")


def test_a_served_model_is_probed_and_does_not_show_its_inside(data: ProbeData) -> None:
    with stub_server(lambda number, body: Says(body=completion("No", -3.0, -0.1))) as server:
        served = transformers_agci.load("stub", engine="openai", base_url=server.url)
        frame = transformers_agci.probe(served, data, **QUIET).to_pandas()
        assert set(frame["margin"].round(6)) == {-2.9}
        assert set(frame["lambda"]) == {"as served"}
        with pytest.raises(InputError, match="`similarity` needs what happens inside the model"):
            transformers_agci.similarity(served, data, **QUIET)


def fresh() -> tuple[Any, Any]:
    """The embedded model of its own, that a test may change."""
    return live(transformers_agci.load())


def test_a_rival_that_is_attached_is_not_recorded_as_agci() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    handle = transformers_agci.attach(module, method="bapa")
    with pytest.raises(InputError, match="would be recorded as those of agci: run with `method` bapa"):
        transformers_agci.probe(wrapped, small, **QUIET)
    assert transformers_agci.probe(wrapped, small, method="bapa", **QUIET).rows[0]["method"] == "bapa"
    handle.strength = 0
    assert transformers_agci.probe(wrapped, small, **QUIET).rows[0]["method"] == "agci"


def test_position_balance_in_the_config_leaves_bapa_to_be_asked_for() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    attach_from_position_key(module)
    assert transformers_agci.probe(wrapped, small, method="bapa", **QUIET).rows[0]["method"] == "bapa"
    with pytest.raises(InputError, match="run with `method` bapa"):
        transformers_agci.probe(wrapped, small, **QUIET)


@pytest.mark.slow
def test_two_threads_with_one_model_do_not_mix_their_lambdas() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2), transformers_agci.wrap(module, processor)
    found: dict[float, list[float]] = {}

    def ask(lam: float) -> None:
        found[lam] = [row["margin"] for row in transformers_agci.probe(wrapped, small, [lam], **QUIET).rows]

    for lam in (0.0, 2.0):
        ask(lam)
    alone = dict(found)
    found.clear()
    threads = [threading.Thread(target=ask, args=(lam,)) for lam in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_weights_that_changed_since_wrap_are_another_model(tmp_path: Path) -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    transformers_agci.probe(wrapped, small, [0], folder=tmp_path, **QUIET)
    with torch.no_grad():
        module.lm_head.weight.mul_(1.5)
    with pytest.raises(InputError, match="live_weights_sha256"):
        transformers_agci.probe(wrapped, small, [0], folder=tmp_path, **QUIET)


def test_a_run_without_lambdas_takes_the_lambda_that_the_model_has_now() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    assert {row["lambda"] for row in transformers_agci.probe(wrapped, small, **QUIET).rows} == {0.0}
    transformers_agci.attach(module, lam=0.5)
    assert {row["lambda"] for row in transformers_agci.probe(wrapped, small, **QUIET).rows} == {0.5}


@pytest.mark.slow
def test_two_threads_measure_similarity_of_one_model_at_their_own_lambda(model: Engine) -> None:
    wrapped = transformers_agci.wrap(*live(model))
    alone = {lam: transformers_agci.similarity(wrapped, lambdas=lam, items=1, **QUIET).rows for lam in (0, 1)}
    found: dict[float, list] = {}

    def measure(lam: float) -> None:
        found[lam] = transformers_agci.similarity(wrapped, lambdas=lam, items=1, **QUIET).rows

    threads = [threading.Thread(target=measure, args=(lam,)) for lam in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone[0] != alone[1]
    assert found == alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"method": "uniform"}, {"scope": "batch"}])
def test_a_control_that_is_attached_is_not_recorded_as_agci(kind: dict[str, str], data: ProbeData) -> None:
    module, processor = live(transformers_agci.load())
    handle = transformers_agci.attach(module, lam=0.5, **kind)
    with pytest.raises(InputError, match="would be recorded as those of agci with the scope image"):
        transformers_agci.probe(transformers_agci.wrap(module, processor), data, **QUIET)
    as_attached = transformers_agci.probe(transformers_agci.wrap(module, processor), data, **kind, **QUIET)
    assert len(as_attached.rows) == 72 * 2 // 2 * len(as_attached) and handle.lam == 0.5
