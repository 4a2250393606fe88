"""Models that are deleted, pickled, copied, and replicated: the handle neither keeps nor drags them along."""

import copy
import gc
import io
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import logits
from tiny_checkpoints import build_model, make_inputs

from transformers_agci import LAMBDA_KEY, attach
from transformers_agci.families import decoder_of
from transformers_agci.method.handle import current_handle
from transformers_agci.method.hooks import HANDLE

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.sampled(3)
def test_deleted_model_is_freed(family: str) -> None:
    """Also while its handle is held, and after a forward pass."""
    model = build_model(family)
    inputs = make_inputs(family, model)
    handle = attach(model, 0.5)
    logits(model, inputs)
    model(**inputs).logits.sum().backward()
    gone = [weakref.ref(model.model), weakref.ref(decoder_of(model.model)), weakref.ref(model.lm_head.weight)]
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]
    assert handle.lam == 0.5
    assert handle.injections == 2
    handle.detach()
    assert "detached" in repr(handle)


def test_torch_save(family: str, model: Any, tmp_path: Path) -> None:
    inputs = make_inputs(family, model)
    attach(model, 0.5)
    torch.save(model, tmp_path / "model.pt")  # before it runs: a stock model that ran cannot always be pickled
    half = logits(model, inputs)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(loaded, inputs), half)
    handle = current_handle(loaded)
    assert handle is not current_handle(model)
    assert (handle.lam, handle.injections, handle.family.model_type) == (0.5, 1, family)
    handle.lam = 0.0
    assert not torch.equal(logits(loaded, inputs), half)
    assert torch.equal(logits(model, inputs), half)


def test_copy_of_the_decoder_drags_nothing_along(family: str, model: Any) -> None:
    handle = attach(model, 0.5)
    twin = copy.deepcopy(decoder_of(model.model))
    assert vars(twin)[HANDLE] is not handle
    assert vars(twin)[HANDLE]._vlm is None
    stream = io.BytesIO()
    torch.save(decoder_of(model.model).state_dict(), stream)
    embeds = torch.randn(1, 5, model.config.get_text_config().hidden_size)
    with torch.no_grad():
        twin(inputs_embeds=embeds)
    assert handle.injections == 0


def test_shallow_copy_outlives_its_model() -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5)
    with torch.no_grad():
        half = model.model(**inputs)[0]
    twin = copy.copy(model.model)
    del model
    gc.collect()
    with torch.no_grad():
        assert torch.equal(twin(**inputs)[0], half)
    assert handle.injections == 2


def test_replicas_in_threads(family: str, model: Any) -> None:
    """As DataParallel makes them: shallow copies of every module, each called in a thread of its own."""
    samples = [make_inputs(family, model, batch=batch, seed=batch) for batch in (1, 2)]
    handle = attach(model, 0.5)
    expected = [logits(model, sample) for sample in samples]
    handle.injections = 0

    def replicate(module: Any) -> Any:
        replica = module._replicate_for_data_parallel()
        replica._parameters = dict(module._parameters)
        replica._buffers = dict(module._buffers)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(replica, name, parameter)
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicate(child)
        return replica

    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        replica = replicate(model)
        for _ in range(4):
            found[index] = logits(replica, samples[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        torch.testing.assert_close(found[index], expected[index], atol=1e-5, rtol=0)
    assert handle.injections == 4 * (1 + 2)


def test_lambda_that_the_dtype_cannot_hold(family: str) -> None:
    model = build_model(family).half()
    inputs = make_inputs(family, model)
    inputs["pixel_values"] = inputs["pixel_values"].half()
    with pytest.raises(ValueError, match=r"more than torch\.float16"):
        attach(model, 1e6)
    assert current_handle(model) is None
    assert not hasattr(model.config, LAMBDA_KEY)
    handle = attach(model, 0.5)
    with pytest.raises(ValueError, match=r"more than torch\.float16"):
        handle.lam = 1e6
    assert handle.lam == 0.5
    vars(model.config)[LAMBDA_KEY] = 1e8  # written behind the handle's back
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        logits(model, inputs)
    handle.lam = 0.0
    assert torch.isfinite(logits(model, inputs)).all()


def test_lambda_that_the_decoder_cannot_hold() -> None:
    """Its image tokens are finite, but not their squares: the logits would be NaN."""
    model = build_model("gemma3n").half()
    inputs = make_inputs("gemma3n", model)
    inputs["pixel_values"] = inputs["pixel_values"].half()
    attach(model, 1000.0)
    with pytest.raises(ValueError, match=r"lambda 1000 is too large for this model in torch\.float16"):
        logits(model, inputs)


@pytest.mark.parametrize("huge", [10**400, 10**5000, -(10**400)], ids=["400 digits", "5000 digits", "negative"])
def test_lambda_beyond_every_float(huge: int) -> None:
    model = build_model("llava")
    with pytest.raises(ValueError, match="finite number >= 0"):
        attach(model, huge)
    assert current_handle(model) is None
