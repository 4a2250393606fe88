"""One number, one owner: config, handle, model attribute and context manager are views of the same lambda."""

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import FAMILIES, build_config, build_model, make_inputs

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, agci, attach
from transformers_agci.method import autoload
from transformers_agci.method.handle import current_handle

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
    import transformers

    models = [transformers.LlavaForConditionalGeneration(config) for _ in range(2)]
    handle = attach(models[0], 0.5)
    assert models[1].global_context_broadcast_lambda == 0.5
    assert current_handle(models[1]).from_config
    logits(models[1])
    assert current_handle(models[1]).injections == 1
    handle.detach()
    assert models[1].global_context_broadcast_lambda == 0.0
