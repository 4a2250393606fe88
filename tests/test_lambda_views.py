"""One number, one owner: config, handle, model attribute and context manager are views of the same lambda."""

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoints import FAMILIES, MODEL_CLASSES, build_config, build_model, make_inputs

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, agci, attach
from transformers_agci.method import autoload
from transformers_agci.method.handle import current_handle

TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks by the old name
]


@pytest.fixture(autouse=True)
def _active() -> Iterator[None]:
    autoload.activate()
    yield


@pytest.fixture
def model() -> Any:
    return build_model("llava")


@pytest.fixture
def keyed_model() -> Any:
    """A model that the key serves, as if config.json had held it."""
    made = build_model("llava")
    setattr(made.config, LAMBDA_KEY, 0.5)
    autoload.attach_from_config(made)
    assert current_handle(made).from_config
    return made


def logits(model: Any, family: str = "llava") -> torch.Tensor:
    with torch.no_grad():
        return model(**make_inputs(family, model)).logits


def test_all_views_show_one_number(model: Any) -> None:
    handle = attach(model, 0.5)
    assert getattr(model.config, LAMBDA_KEY) == handle.lam == model.global_context_broadcast_lambda == 0.5
    handle.lam = 0.25
    assert getattr(model.config, LAMBDA_KEY) == model.global_context_broadcast_lambda == 0.25
    model.global_context_broadcast_lambda = 1
    assert getattr(model.config, LAMBDA_KEY) == handle.lam == 1.0
    setattr(model.config, LAMBDA_KEY, 0.75)
    assert handle.lam == model.global_context_broadcast_lambda == model.model.global_context_broadcast_lambda == 0.75


def test_config_is_read_at_every_prefill(model: Any) -> None:
    stock = logits(model)
    attach(model, 0.5)
    half = logits(model)
    setattr(model.config, LAMBDA_KEY, 0.0)
    assert torch.equal(logits(model), stock)
    setattr(model.config, LAMBDA_KEY, 0.5)
    assert torch.equal(logits(model), half)


@pytest.mark.parametrize("family", FAMILIES)
def test_attribute_turns_agci_on(family: str) -> None:
    model = build_model(family)
    stock = logits(model, family)
    assert model.global_context_broadcast_lambda == 0.0
    assert current_handle(model) is None
    model.global_context_broadcast_lambda = 0.5
    half = logits(model, family)
    assert current_handle(model).injections == 1
    assert not torch.equal(half, stock)
    model.global_context_broadcast_lambda = 0
    assert torch.equal(logits(model, family), stock)
    inner = build_model(family).model
    inner.global_context_broadcast_lambda = 0.5
    assert current_handle(inner).lam == inner.global_context_broadcast_lambda == 0.5


def test_attribute_through_peft(model: Any) -> None:
    import peft

    model.global_context_broadcast_lambda = 0.5
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert wrapped.global_context_broadcast_lambda == 0.5
    wrapped.get_base_model().global_context_broadcast_lambda = 0.25
    assert wrapped.global_context_broadcast_lambda == current_handle(wrapped).lam == 0.25


@pytest.mark.parametrize("bad", [-1, float("nan"), "0.5", [0.5], None])
def test_attribute_refuses_a_bad_value(model: Any, bad: object) -> None:
    with pytest.raises(ValueError, match=f"model.{LAMBDA_KEY} is"):
        model.global_context_broadcast_lambda = bad
    assert current_handle(model) is None
    assert not hasattr(model.config, LAMBDA_KEY)


def test_attribute_of_an_unsupported_model(model: Any) -> None:
    decoder = model.model.language_model
    assert not hasattr(decoder, LAMBDA_KEY)
    with pytest.raises(ValueError, match="does not support") as error:
        decoder.global_context_broadcast_lambda = 0.5
    assert all(family in str(error.value) for family in SUPPORTED_FAMILIES)
    assert not hasattr(decoder.config, LAMBDA_KEY)


def test_attach_takes_over_what_the_key_serves(keyed_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    by_key = current_handle(keyed_model)
    handle = attach(keyed_model, 1.0, scope="batch", method="uniform")
    assert handle is by_key
    assert (handle.lam, handle.scope, handle.method, handle.from_config) == (1.0, "batch", "uniform", False)
    assert [r.getMessage() for r in caplog.records if "wins" in r.getMessage()] == [
        "AGCI: lambda 1 as given wins over 0.5 in the model's config."
    ]
    with pytest.raises(ValueError, match="already attached"):
        attach(keyed_model, 0.5)
    logits(keyed_model)
    assert handle.injections == 1  # one set of hooks
    handle.detach()
    assert getattr(keyed_model.config, LAMBDA_KEY) == 0.5
    assert current_handle(keyed_model) is None


def test_attach_after_the_attribute_takes_over(model: Any) -> None:
    model.global_context_broadcast_lambda = 0.5
    handle = attach(model, 0.75)
    assert model.global_context_broadcast_lambda == handle.lam == 0.75
    handle.detach()
    assert not hasattr(model.config, LAMBDA_KEY)


def test_equal_lambda_is_no_conflict(keyed_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    attach(keyed_model, 0.5)
    assert not [record for record in caplog.records if "wins" in record.getMessage()]


@pytest.mark.parametrize("found", [0.5, 0.0, 3])
def test_detach_restores_the_key_as_found(model: Any, found: float) -> None:
    stock = logits(model)
    setattr(model.config, LAMBDA_KEY, found)
    handle = attach(model, 1.0)
    handle.lam = 0.25
    handle.detach()
    assert getattr(model.config, LAMBDA_KEY) == found
    assert type(getattr(model.config, LAMBDA_KEY)) is type(found)
    assert torch.equal(logits(model), stock)


def test_detach_leaves_no_key_where_there_was_none(model: Any) -> None:
    before = model.config.to_dict()
    attach(model, 0.5).detach()
    assert model.config.to_dict() == before
    assert "_agci_handle" not in vars(model.model)


@pytest.mark.parametrize("before", [None, 0.4])
@pytest.mark.parametrize("given", [None, 0.2])
@pytest.mark.parametrize("how", ["attached", "copied", "unpickled"])
def test_detach_restores_every_config_that_the_model_had(
    model: Any, before: float | None, given: float | None, how: str
) -> None:
    first, second = model.config, copy.deepcopy(model.config)
    for config, lam in ((first, before), (second, given)):
        if lam is not None:
            vars(config)[LAMBDA_KEY] = lam
    handle = attach(model, 0.5)
    model.config = second
    assert handle.lam == (0.5 if given is None else 0.2)
    handle.lam = 0.6
    if how != "attached":
        model = copy.deepcopy(model) if how == "copied" else pickle.loads(pickle.dumps(model))
        handle, first, second = current_handle(model), model.model.config, model.config
    handle.detach()
    assert [vars(config).get(LAMBDA_KEY) for config in (first, second)] == [before, given]


def test_a_detached_handle_writes_nothing_into_the_config(model: Any) -> None:
    handle = attach(model, 0.5)
    handle.detach()
    with pytest.raises(ValueError, match=r"handle\.lam cannot be set: AGCI is detached from this model"):
        handle.lam = 0.3
    rival = attach(model, method="bapa")
    rival.detach()
    with pytest.raises(ValueError, match=r"handle\.strength cannot be set: bapa is detached from this model"):
        rival.strength = 1
    assert not {LAMBDA_KEY, "position_balance"} & set(model.config.to_dict())


def test_context_manager_on_a_model_that_the_key_serves(keyed_model: Any) -> None:
    half = logits(keyed_model)
    with agci(keyed_model, 0.0) as handle:
        assert handle is current_handle(keyed_model)
        assert keyed_model.global_context_broadcast_lambda == 0.0
        stock = logits(keyed_model)
        with agci(keyed_model, 0.5):
            assert torch.equal(logits(keyed_model), half)
        assert torch.equal(logits(keyed_model), stock)
    assert not torch.equal(stock, half)
    assert torch.equal(logits(keyed_model), half)
    assert current_handle(keyed_model).from_config
    with pytest.raises(RuntimeError), agci(keyed_model, 1.0, scope="batch"):
        raise RuntimeError
    assert (current_handle(keyed_model).lam, current_handle(keyed_model).scope) == (0.5, "image")


def test_context_manager_with_the_attribute_set_within(model: Any) -> None:
    with agci(model, 0.5) as handle:
        model.global_context_broadcast_lambda = 1.0
        assert handle.lam == 1.0
    assert current_handle(model) is None
    assert not hasattr(model.config, LAMBDA_KEY)


def test_save_pretrained_writes_the_lambda_of_now(model: Any, tmp_path: Path) -> None:
    handle = attach(model, 0.5)
    handle.lam = 0.25
    model.save_pretrained(tmp_path / "on")
    handle.detach()
    model.save_pretrained(tmp_path / "off")
    assert json.loads((tmp_path / "on" / "config.json").read_text())[LAMBDA_KEY] == 0.25
    assert LAMBDA_KEY not in (tmp_path / "off" / "config.json").read_text()
    loaded = type(model).from_pretrained(tmp_path / "on").eval()
    assert loaded.global_context_broadcast_lambda == 0.25
    with agci(model, 0.25):
        torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


def test_deepcopy_has_its_own_lambda(keyed_model: Any) -> None:
    twin = copy.deepcopy(keyed_model)
    twin.global_context_broadcast_lambda = 1.0
    assert (keyed_model.global_context_broadcast_lambda, current_handle(keyed_model).lam) == (0.5, 0.5)
    assert current_handle(twin).lam == 1.0
    with pytest.raises(ValueError, match="already attached"):
        attach(keyed_model, 0.5) and attach(keyed_model, 0.5)
    attach(twin, 0.25)
    assert twin.global_context_broadcast_lambda == 0.25


def test_two_models_of_one_config_object_share_lambda() -> None:
    """As stock does with every setting of a config that two models are given."""
    config = build_config("llava")
    models = [transformers.LlavaForConditionalGeneration(config) for _ in range(2)]
    handle = attach(models[0], 0.5)
    assert models[1].global_context_broadcast_lambda == 0.5
    assert current_handle(models[1]).from_config
    logits(models[1])
    assert current_handle(models[1]).injections == 1
    handle.detach()
    assert models[1].global_context_broadcast_lambda == 0.0


# --- where the key stands, and who is told -------------------------------------------------------------------------


def served(config: Any, family: str) -> Any:
    """A model that was built with this config while the start-up hook was active."""
    return getattr(transformers, MODEL_CLASSES[family])(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("top", "nested", "lam", "warnings"),
    [(0.0, 0.2, 0.0, 1), (0.7, 0.2, 0.7, 1), (None, 0.2, 0.2, 0), (0.2, 0.2, 0.2, 0)],
)
def test_top_level_wins(
    family: str, top: float | None, nested: float, lam: float, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(family)
    vars(config.text_config)[LAMBDA_KEY] = nested
    if top is not None:
        vars(config)[LAMBDA_KEY] = top
    model = served(config, family)
    logits(model, family)
    assert model.global_context_broadcast_lambda == lam
    assert current_handle(model).injections == (lam > 0)
    assert len([r for r in caplog.records if "the top level wins" in r.getMessage()]) == warnings
    assert LAMBDA_KEY not in config.to_dict()["text_config"]


def test_key_in_text_config_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The decoder is built as a model of its own: it is not said to be unsupported."""
    autoload._warned.clear()
    build_model("llava").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config[LAMBDA_KEY], config["text_config"][LAMBDA_KEY] = 0, 0.2
    file.write_text(json.dumps(config))
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert model.global_context_broadcast_lambda == 0
    said = [r.getMessage() for r in caplog.records if r.name == "transformers_agci"]
    assert said == [f"{LAMBDA_KEY} is 0 at the top of config.json and 0.2 in text_config: the top level wins."]


def test_key_in_the_vision_config_is_named(caplog: pytest.LogCaptureFixture) -> None:
    config = build_config("llava")
    vars(config.vision_config)[LAMBDA_KEY] = 0.5
    model = served(config, "llava")
    assert current_handle(model) is None
    assert ["vision_config does nothing" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["model", "inner model"])
@pytest.mark.parametrize("by", ["attach", "key"])
def test_replaced_config(family: str, where: str, by: str, caplog: pytest.LogCaptureFixture) -> None:
    config = build_config(family)
    if by == "key":
        vars(config)[LAMBDA_KEY] = 0.2
    model = served(config, family)
    if by == "attach":
        attach(model, 0.2)
    with_key, without_key = copy.deepcopy(config), copy.deepcopy(config)
    setattr(with_key, LAMBDA_KEY, 0.7)
    vars(without_key).pop(LAMBDA_KEY, None)
    shown = model if where == "model" else model.model
    fifth = logits(model, family)
    shown.config = with_key
    assert not torch.equal(logits(model, family), fifth)
    assert current_handle(model).lam == model.global_context_broadcast_lambda == 0.7
    shown.config = without_key
    logits(model, family)
    assert getattr(without_key, LAMBDA_KEY) == 0.7  # a number that was asked for is not lost without a word
    assert len([r for r in caplog.records if "was given another config" in r.getMessage()]) == 2


@pytest.mark.parametrize("how", ["attach", "key", "nothing"])
def test_attribute_of_a_wrapper(how: str) -> None:
    import peft

    model = build_model("llava")
    stock = logits(model)
    if how == "attach":
        attach(model, 0.2)
    elif how == "key":
        model.global_context_broadcast_lambda = 0.2
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2)).eval()
    autoload.activate()  # the start-up hook does so when peft is imported
    parallel = torch.nn.DataParallel(wrapped)
    for wrapper, lam in ((wrapped, 0.7), (parallel, 0.3), (wrapped.base_model, 0.6), (wrapped, 0)):
        wrapper.global_context_broadcast_lambda = lam
        assert LAMBDA_KEY not in vars(wrapper)
        assert wrapper.global_context_broadcast_lambda == current_handle(model).lam == lam
        assert torch.equal(logits(wrapped), stock) == (lam == 0)
    with pytest.raises(ValueError, match="finite number"):
        wrapped.global_context_broadcast_lambda = -1


@pytest.mark.slow
def test_attribute_after_attach_without_the_start_up_hook(tmp_path: Path) -> None:
    """It is a view of lambda from the first `attach` on; in a process of its own, since activation stays."""
    program = f"""
import torch
from tiny_checkpoints import build_model, make_inputs
from transformers_agci import attach
model = build_model("llava")
assert not hasattr(model, "{LAMBDA_KEY}")
handle = attach(model, 0.5)
model.{LAMBDA_KEY} = 0.0
assert handle.lam == 0.0, handle
model(**make_inputs("llava", model))
model.{LAMBDA_KEY} = 0.25
model(**make_inputs("llava", model))
print(handle, model.model.{LAMBDA_KEY})
"""
    environment = os.environ | {"TRANSFORMERS_AGCI": "0", "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "AGCI(lam=0.25, scope=image, family=llava, images=1) 0.25\n", done.stderr
