"""What a method leaves behind: nothing after `detach`, nothing in the thread, and of a saved model what is said.

Every method, AGCI's controls included, on a family with M-RoPE and on one whose positions have one axis.
"""

import copy
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_families import TEXT, TINY, make_batch

from transformers_agci import InputError, agci, attach
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.declaration import WORKS
from transformers_agci.method.handle import current_handle
from transformers_agci.method.injection import METHODS, SEEDED
from transformers_agci.method.rivals import RIVALS
from transformers_agci.method.rivals.handle import current_rival

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

CONTROLS = [name for name in (*METHODS, *SEEDED) if name != "agci"]
EVERY = ["agci", *CONTROLS, *RIVALS]
NAMES = ("qwen2_vl", "vipllava")
MOVABLE = [name for name, family in TINY.items() if SUPPORTED_FAMILIES[family.model_type].positions is WORKS]
SAVED = [name for name in MOVABLE if "save" not in TINY[name].notes]  # the others are not what they were when loaded
PROMPTS = [[TEXT, "plain", TEXT], [TEXT, "tiled", TEXT, TEXT]]
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 3,
    "min_new_tokens": 3,
    "suppress_tokens": list(range(40)),
}


def strength(method: str) -> dict[str, Any]:
    """Arguments with which the method acts."""
    return {"strength": 1.0} if method in RIVALS else {"lam": 0.5}


def on(model: Any, method: str) -> Any:
    return attach(model, method=method, **strength(method))


@pytest.fixture
def model() -> Any:
    return TINY["qwen2_vl"].build()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return make_batch(TINY["qwen2_vl"], PROMPTS).inputs


def traces(model: Any) -> Any:
    """Attributes and hooks of every module, every config, every attention backend."""
    modules = [
        (
            name,
            sorted(set(vars(part)) - {"_agci_compiled"}),
            *(len(vars(part)[hooks]) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")),
        )
        for name, part in model.named_modules()
    ]
    backends = [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")]
    return modules, json.dumps(model.config.to_dict(), default=str), backends


@torch.no_grad()
@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("name", NAMES)
def test_detach_leaves_no_trace(name: str, method: str) -> None:
    """Nor does a `with` block, nor a call that ends in an error."""
    model, given = TINY[name].build(), make_batch(TINY[name], PROMPTS).inputs
    stock, before = model(**given).logits, traces(model)
    handle = on(model, method)
    assert "images=0" in repr(handle)
    assert (method if method != "agci" else "AGCI") in repr(handle)
    assert traces(model) != before
    model(**given)
    assert handle.injections == 2
    handle.detach()
    handle.detach()
    assert traces(model) == before
    assert torch.equal(model(**given).logits, stock)
    with agci(model, method=method, **strength(method)):
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):  # stock's own
            model(**{**given, "input_ids": given["input_ids"][:, :5]})  # the images are cut off
        assert traces(model) != before
    assert traces(model) == before
    assert torch.equal(model(**given).logits, stock)


@torch.no_grad()
@pytest.mark.parametrize("method", RIVALS)
def test_neutral_strength_is_stock_bit_for_bit(model: Any, inputs: dict[str, Any], method: str) -> None:
    stock = model(**inputs).logits
    handle = attach(model, method=method, strength=RIVALS[method].neutral)
    assert torch.equal(model(**inputs).logits, stock)
    assert handle.injections == 0
    handle.strength = 1
    with handle.suspended():
        assert torch.equal(model(**inputs).logits, stock)
    assert handle.injections == 0


@pytest.mark.parametrize("method", RIVALS)
def test_nothing_of_a_call_stays_in_the_thread(model: Any, inputs: dict[str, Any], method: str) -> None:
    """It would hold the last call's pixels, and through the handle the model, after the run has ended."""
    from transformers_agci.method.rivals import attention
    from transformers_agci.method.rivals.call_state import state

    with agci(model, method=method, strength=1.0), torch.inference_mode():
        model(**inputs)
        assert state.vlm is state.prompt is state.moved is state.plan is state.bias is attention._state.plan is None


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_handle_of_its_own(model: Any, inputs: dict[str, Any], copied: Any) -> None:
    stock = model(**inputs).logits
    handle = attach(model, method="bapa")
    ours = model(**inputs).logits
    twin = copied(model)
    assert torch.equal(twin(**inputs).logits, ours)
    own = current_rival(twin)
    assert own is not None
    assert own is not handle
    own.strength = 0
    assert torch.equal(twin(**inputs).logits, stock)
    assert torch.equal(model(**inputs).logits, ours)
    assert handle.injections == 4
    assert own.injections == 4  # two of them came with the copy


@torch.no_grad()
def test_bapa_is_saved_under_the_published_key(model: Any, inputs: dict[str, Any], tmp_path: Path) -> None:
    """`position_balance` in config.json turns BaPA on, as the authors' copy of transformers does."""
    stock = model(**inputs).logits
    handle = attach(model, method="bapa")
    ours = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["position_balance"] is True
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager").eval()
    served = current_rival(loaded)
    assert served is not None
    assert served.from_config
    assert torch.equal(loaded(**inputs).logits, ours)
    taken = attach(loaded, method="bapa", strength=0)
    assert torch.equal(loaded(**inputs).logits, stock)
    assert taken is current_rival(loaded)
    handle.strength = 0
    assert model.config.position_balance is False
    handle.detach()
    assert not hasattr(model.config, "position_balance")


@torch.no_grad()
@pytest.mark.parametrize("method", [name for name in RIVALS if name != "bapa"])
def test_other_rivals_are_not_saved(
    model: Any, inputs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    stock = model(**inputs).logits
    with caplog.at_level(logging.WARNING, "transformers_agci"):
        on(model, method)
    assert f"{method} is not saved with the model" in caplog.text
    model.save_pretrained(tmp_path)
    assert "agci" not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert current_rival(loaded) is None
    assert torch.equal(loaded(**inputs).logits, stock)


@torch.no_grad()
@pytest.mark.parametrize("method", CONTROLS)
def test_of_a_control_lambda_alone_is_saved(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """The saved model is AGCI's at that lambda: so the log says when the control is attached."""
    with caplog.at_level(logging.WARNING, "transformers_agci"):
        on(model, method)
    assert "Only lambda is saved with the model" in caplog.text and f"attach {method} with" in caplog.text
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    served = current_handle(loaded)
    assert served is not None
    assert (served.method, served.lam) == ("agci", 0.5)


def test_what_is_saved_as_it_is_goes_without_saying(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "transformers_agci"):
        attach(model, 0.5).detach()
        attach(model, method="bapa").detach()
        with agci(model, 0.5, method="uniform"), pytest.raises(InputError):  # ends before anything could be saved
            attach(model, 0.5)
    assert "saved" not in caplog.text


@pytest.mark.sampled(22)
@torch.no_grad()
@pytest.mark.parametrize("name", SAVED)
def test_bapa_is_saved_and_loaded_on_every_family(name: str, tmp_path: Path) -> None:
    model, batch = TINY[name].build(), make_batch(TINY[name], [[TEXT, "plain", TEXT]])
    on(model, "bapa")
    ours = model(**batch.inputs).logits
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    served = current_rival(loaded)
    assert served is not None and served.method == "bapa"
    torch.testing.assert_close(loaded(**batch.inputs).logits, ours, atol=1e-5, rtol=0)
    assert served.injections == 1


@pytest.mark.sampled(14)
@torch.no_grad()
@pytest.mark.parametrize("method", [*EVERY, "pai with a second pass"])
@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_mix(name: str, method: str) -> None:
    """Two prompts answered in four threads at once: the tokens of each are those that it has alone."""
    model, word = TINY[name].build(), method.split()[0]
    more = {"first_layer": 1} | ({} if word != method else {"gamma": 1.0}) if word == "pai" else {}
    handle: Any = attach(model, method=word, **strength(word), **more)
    prompts = [[[TEXT, "plain", TEXT]], [[TEXT, TEXT, "plain", "plain", TEXT]]]
    batches = [make_batch(TINY[name], prompt, seed=number) for number, prompt in enumerate(prompts)]

    def answer(number: int) -> list[torch.Tensor]:
        given = batches[number].inputs
        second = handle.logits_processor(given) if word in RIVALS else None
        processors = {} if second is None else {"logits_processor": [second]}
        with torch.no_grad():
            made = model.generate(**given, **GREEDY, **processors, output_logits=True, return_dict_in_generate=True)
        return [made.sequences, *made.logits]

    wanted = [answer(number) for number in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, [0, 1] * 6))
    for number, answered in enumerate(found):
        for mine, alone in zip(answered, wanted[number % 2], strict=True):
            assert torch.equal(mine, alone)
