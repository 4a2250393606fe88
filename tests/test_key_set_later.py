"""The key set, or another config given, after a model was built, copied, unpickled, or had AGCI taken off."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoints import FAMILIES, MODEL_CLASSES, build_config, make_inputs
from tiny_families import TINY

from transformers_agci import LAMBDA_KEY, agci, attach
from transformers_agci.method import autoload
from transformers_agci.method.handle import current_handle
from transformers_agci.method.rivals.handle import current_rival

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def _active() -> None:
    autoload.activate()


def served(config: Any, family: str) -> Any:
    """A model that was built with this config while the start-up hook was active."""
    return getattr(transformers, MODEL_CLASSES[family])(config).eval()


def logits(model: Any, family: str = "llava") -> torch.Tensor:
    with torch.no_grad():
        return model(**make_inputs(family, model)).logits


def check_acts(model: Any, stock: torch.Tensor, family: str = "llava") -> None:
    """AGCI is on at 0.7: the next call injects once and answers otherwise."""
    assert model.global_context_broadcast_lambda == 0.7
    assert not torch.equal(logits(model, family), stock)
    assert current_handle(model).injections == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["config", "text_config", "inner config"])
def test_key_set_on_the_config_of_a_model_without_it(family: str, where: str) -> None:
    model = served(build_config(family), family)
    stock = logits(model, family)
    assert current_handle(model) is None
    config = {"config": model.config, "text_config": model.config.text_config, "inner config": model.model.config}[
        where
    ]
    setattr(config, LAMBDA_KEY, 0.7)
    check_acts(model, stock, family)
    setattr(model.config, LAMBDA_KEY, 0.0)
    assert torch.equal(logits(model, family), stock)


def test_key_set_on_another_config_of_a_model_without_it() -> None:
    model = served(build_config("llava"), "llava")
    stock = logits(model)
    model.config = copy.deepcopy(model.config)  # the vlm inside keeps the old one
    setattr(model.config, LAMBDA_KEY, 0.7)
    check_acts(model, stock)


@pytest.mark.parametrize("where", ["model", "inner model"])
def test_config_with_the_key_given_to_a_model_without_it(where: str) -> None:
    model = served(build_config("llava"), "llava")
    stock = logits(model)
    shown = model if where == "model" else model.model
    shown.config = copy.deepcopy(model.config)
    assert current_handle(model) is None
    with_key = copy.deepcopy(model.config)
    setattr(with_key, LAMBDA_KEY, 0.7)
    shown.config = with_key
    check_acts(model, stock)
    model.global_context_broadcast_lambda = 0.0
    assert torch.equal(logits(model), stock)


def test_text_config_with_the_key_given_to_the_config_of_a_model_without_it() -> None:
    model = served(build_config("llava"), "llava")
    stock = logits(model)
    part = copy.deepcopy(model.config.text_config)
    vars(part)[LAMBDA_KEY] = 0.7
    model.config.text_config = part
    assert getattr(model.config, LAMBDA_KEY) == 0.7
    check_acts(model, stock)


def attached_and_detached() -> Any:
    model = served(build_config("llava"), "llava")
    with agci(model, 0.2):
        logits(model)
    return model


def keyed_and_detached() -> Any:
    config = build_config("llava")
    vars(config)[LAMBDA_KEY] = 0.2
    model = served(config, "llava")
    current_handle(model).detach()
    return model


def copied() -> Any:
    return copy.deepcopy(served(build_config("llava"), "llava"))


def unpickled() -> Any:
    return pickle.loads(pickle.dumps(served(build_config("llava"), "llava")))


@pytest.mark.parametrize("made", [attached_and_detached, keyed_and_detached, copied, unpickled])
@pytest.mark.parametrize("by", ["key", "config"])
def test_key_set_on_a_model_that_has_no_agci_any_more_or_yet(made: Callable[[], Any], by: str) -> None:
    model = made()
    stock = logits(model)
    assert current_handle(model) is None
    assert model.global_context_broadcast_lambda == 0  # whatever the config says: the images are left as they are
    if by == "key":
        setattr(model.config, LAMBDA_KEY, 0.7)
    else:
        with_key = copy.deepcopy(model.config)
        setattr(with_key, LAMBDA_KEY, 0.7)
        model.config = with_key
    check_acts(model, stock)


@pytest.mark.parametrize("by", ["key", "attribute", "handle"])
def test_key_set_on_a_model_whose_inner_model_was_replaced_by_a_copy(by: str) -> None:
    model = served(build_config("llava"), "llava")
    stock = logits(model)
    handle = attach(model, 0.2)
    model.model = copy.deepcopy(model.model)
    for lam in (0.0, 0.7):
        if by == "key":
            setattr(model.config, LAMBDA_KEY, lam)
        elif by == "attribute":
            model.global_context_broadcast_lambda = lam
        else:
            handle.lam = lam
        if not lam:
            assert torch.equal(logits(model), stock)
    check_acts(model, stock)


def test_key_set_in_text_config_while_agci_is_on(caplog: pytest.LogCaptureFixture) -> None:
    model = served(build_config("llava"), "llava")
    setattr(model.config, LAMBDA_KEY, 0.5)
    half = logits(model)
    setattr(model.config.text_config, LAMBDA_KEY, 0.7)
    assert [r.getMessage() for r in caplog.records if "the top level wins" in r.getMessage()] == [
        f"{LAMBDA_KEY} is 0.5 at the top of config.json and 0.7 in text_config: the top level wins."
    ]
    assert torch.equal(logits(model), half)


def test_key_set_on_a_config_of_a_model_type_that_has_another_name_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """LFM2-VL was lfm2-vl to transformers 4.57."""
    family = TINY["lfm2_vl"]
    monkeypatch.setattr(transformers.Lfm2VlConfig, "model_type", "lfm2-vl")
    model: Any = family.build()
    setattr(model.config, LAMBDA_KEY, 0.5)
    assert model.global_context_broadcast_lambda == 0.5
    del model.config.global_context_broadcast_lambda
    model.config.position_balance = True
    assert current_rival(model) is not None


def test_position_balance_set_on_the_config_of_a_built_model() -> None:
    model = served(build_config("llava"), "llava")
    stock = logits(model)
    with agci(model, method="bapa"):
        ours = logits(model)
    model.config.position_balance = True
    assert torch.equal(logits(model), ours)
    model.config.position_balance = False
    assert torch.equal(logits(model), stock)
    model.config.position_balance = True
    assert current_rival(model).strength == 1
    assert torch.equal(logits(model), ours)
    with pytest.raises(ValueError, match=r"position_balance in .* must be true or false, but is 'yes'"):
        model.config.position_balance = "yes"


def test_position_balance_of_another_config(tmp_path: Path) -> None:
    """Both configs have it while BaPA is on, and what is saved has it; then each is as it was."""
    model = served(build_config("llava"), "llava")
    stock = logits(model)
    model.config = copy.deepcopy(model.config)
    handle = attach(model, method="bapa")
    ours = logits(model)
    model.config = copy.deepcopy(model.model.config)
    del model.config.position_balance
    without = copy.deepcopy(model.config)
    model.config = without  # given the key, as AGCI's is
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["position_balance"] is True
    handle.strength = 0
    assert (model.config.position_balance, model.model.config.position_balance) == (False, False)
    turned_on = copy.deepcopy(without)
    turned_on.position_balance = True
    model.config = turned_on
    assert handle.strength == 1
    assert torch.equal(logits(model), ours)
    handle.detach()
    assert not hasattr(without, "position_balance") and not hasattr(model.model.config, "position_balance")
    assert turned_on.position_balance is True
    assert torch.equal(logits(model), stock)
