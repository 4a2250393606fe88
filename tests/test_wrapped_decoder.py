"""A decoder that was wrapped, replaced or copied after AGCI came, and one that is called twice."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoder_inputs import CACHE, expected_embeds, images_of, logits, recorded_decoder_inputs
from tiny_checkpoints import build_model, image_tokens, make_inputs
from torch.utils.checkpoint import checkpoint

from transformers_agci import InputError, agci, attach
from transformers_agci.families import decoder_of
from transformers_agci.method.handle import current_handle
from transformers_agci.method.hooks import HANDLE
from transformers_agci.method.rivals.hooks import before_decoder

pytestmark = pytest.mark.filterwarnings("ignore")


def our_traces(model: Any) -> list[str]:
    """The names of modules that hold a hook or a handle of ours."""
    return [
        name
        for name, module in model.named_modules()
        if HANDLE in vars(module)
        or any(
            getattr(hook, "__module__", "").startswith("transformers_agci")
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        )
    ]


class Wrapper(torch.nn.Module):
    """Hands everything on, as ModulesToSaveWrapper and FSDP do."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.inside = inside

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inside, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


class TriesAgain(Wrapper):
    """The first attempt is thrown away, as after an out-of-memory error."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(CACHE, None)
        self.inside(*args, **kwargs)
        return self.inside(*args, **kwargs)


def fresh_copy(decoder: Any) -> Any:
    """Another decoder with the same weights and without hooks."""
    twin = copy.deepcopy(decoder)
    twin._forward_pre_hooks.clear()
    vars(twin).pop(HANDLE, None)
    return twin


@pytest.mark.sampled(4)
@pytest.mark.parametrize("wrap", [Wrapper, copy.deepcopy, fresh_copy, TriesAgain], ids=lambda wrap: wrap.__name__)
def test_decoder_replaced_after_attach(family: str, model: Any, wrap: Callable[[Any], Any]) -> None:
    inputs = make_inputs(family, model, batch=2)
    stock = logits(model, inputs)
    handle = attach(model, 0.5)
    half = logits(model, inputs)
    model.model.language_model = wrap(model.model.language_model)
    torch.testing.assert_close(logits(model, inputs), half, atol=1e-6, rtol=0)
    assert handle.injections == 4
    handle.lam = 0.0
    torch.testing.assert_close(logits(model, inputs), stock, atol=1e-6, rtol=0)
    handle.detach()
    torch.testing.assert_close(logits(model, inputs), stock, atol=1e-6, rtol=0)
    assert our_traces(model) == []


@pytest.mark.parametrize("order", ["attach first", "adapter first"])
def test_peft_saves_the_whole_decoder(family: str, model: Any, order: str) -> None:
    import peft

    inputs = make_inputs(family, model, batch=2)
    stock = logits(model, inputs)
    with agci(model, 0.5):
        half = logits(model, inputs)
    lora = peft.LoraConfig(target_modules=["lm_head"], r=2, modules_to_save=["language_model"])
    if order == "attach first":
        handle = attach(model, 0.5)
    size = sum(1 for _ in model.modules())
    wrapped = peft.get_peft_model(model, lora).eval()
    if order == "adapter first":
        handle = attach(wrapped, 0.5)
    torch.testing.assert_close(logits(wrapped, inputs), half, atol=1e-6, rtol=0)
    assert handle.injections == 2
    handle.lam = 0.0
    torch.testing.assert_close(logits(wrapped, inputs), stock, atol=1e-6, rtol=0)
    copies = [m for m in wrapped.modules() if isinstance(m, peft.utils.ModulesToSaveWrapper)]
    assert len(copies) == 1
    assert sum(1 for _ in wrapped.modules()) < 2.2 * size
    assert current_handle(wrapped) is handle
    taken_along = vars(next(iter(copies[0].modules_to_save.values()))).get(HANDLE)
    assert taken_along is None or taken_along._vlm is None  # no copy of the whole model hangs on it


def gradients(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    labels = inputs["input_ids"].where(inputs["input_ids"] < 200, -100)
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def wrapper_around_the_decoder(model: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model.model.language_model = checkpoint_wrapper(model.model.language_model)


def wrapper_around_the_vlm(model: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model.model = checkpoint_wrapper(model.model)


def composable(model: Any) -> None:
    from torch.distributed._composable import checkpoint as composable_checkpoint

    composable_checkpoint(decoder_of(model.model))


def call_is_checkpointed(model: Any) -> None:
    """As a vlm whose own code checkpoints the call of its decoder, hooks and all."""
    decoder = decoder_of(model.model)
    call = type(decoder).__call__

    def checkpointed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(call, self, *args, use_reentrant=False, **kwargs)

    decoder.__class__ = type(type(decoder).__name__, (type(decoder),), {"__call__": checkpointed})


CHECKPOINTING = [
    wrapper_around_the_decoder,
    wrapper_around_the_vlm,
    composable,
    call_is_checkpointed,
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("order", ["attach first", "wrap first"])
@pytest.mark.parametrize("wrap", CHECKPOINTING, ids=lambda wrap: wrap.__name__)
def test_recomputation_injects_as_well(family: str, model: Any, wrap: Callable[[Any], None], order: str) -> None:
    """Everything but the decoder is frozen, so that the decoder's gradients depend on what is recomputed."""
    inputs = make_inputs(family, model, batch=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "language_model.layers" in name
    plain = copy.deepcopy(model)
    stock = gradients(plain, inputs)
    attach(plain, 0.5)
    expected = gradients(plain, inputs)
    if order == "attach first":
        attach(model, 0.5)
        wrap(model)
    else:
        wrap(model)
        attach(model, 0.5)
    found = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in gradients(model, inputs).items()}
    assert expected.keys() <= found.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-5, rtol=1e-3)
    assert any((expected[name] - stock[name]).abs().max() > 1e-5 for name in expected)


def layers_alone(model: Any) -> None:
    model.train().gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("wrap", [*CHECKPOINTING, layers_alone], ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("event", ["lambda was changed", "AGCI was taken off", "nothing"])
def test_lambda_changed_before_the_backward_pass(
    wrap: Callable[[Any], None], event: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is recomputed then would be computed with the new lambda: a warning, where it is the update itself."""
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5)
    wrap(model)
    losses = [model(**inputs, use_cache=False).logits.mean() for _ in range(2)]
    if event == "lambda was changed":
        handle.lam = 1.0
    elif event == "AGCI was taken off":
        handle.detach()
    expected = [event] if event != "nothing" and wrap in (wrapper_around_the_vlm, call_is_checkpointed) else []
    found = [r.getMessage() for r in caplog.records if "before the backward pass" in r.getMessage()]
    assert [message.split(" before")[0] for message in found] == [f"AGCI: {event}" for event in expected]
    if event == "nothing":
        sum(losses).backward()
        handle.lam = 1.0
        assert not [r for r in caplog.records if "before the backward pass" in r.getMessage()]


@pytest.mark.parametrize("wrap", [wrapper_around_the_decoder, wrapper_around_the_vlm, layers_alone])
@pytest.mark.parametrize(
    ("change", "event"),
    [
        (lambda handle: setattr(handle, "strength", 0), "bapa: its strength was changed"),
        (lambda handle: handle.detach(), "bapa: it was taken off"),
        (lambda handle: setattr(handle, "strength", 1), None),  # as it was
    ],
)
def test_a_rival_changed_before_the_backward_pass(
    wrap: Callable[[Any], None], change: Callable[[Any], None], event: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, method="bapa")
    wrap(model)
    loss = model(**inputs, use_cache=False).logits.mean()
    change(handle)
    found = [r.getMessage().split(" before")[0] for r in caplog.records if "before the backward" in r.getMessage()]
    assert found == ([event] if event is not None and wrap is wrapper_around_the_vlm else [])
    loss.backward()


@pytest.mark.parametrize("wrap", CHECKPOINTING, ids=lambda wrap: wrap.__name__)
def test_a_rival_on_a_model_that_was_wrapped_after_it(wrap: Callable[[Any], None]) -> None:
    """It acts, and its gradients are those without checkpointing; where they cannot be, that is said."""
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    plain = copy.deepcopy(model)
    stock, handle = gradients(copy.deepcopy(model), inputs), attach(model, method="bapa")
    attach(plain, method="bapa")
    expected = gradients(plain, inputs)
    wrap(model)
    if wrap is call_is_checkpointed:
        with pytest.raises(InputError, match="runs the decoder alone again in the backward pass"):
            gradients(model, inputs)
        return
    found = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in gradients(model, inputs).items()}
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-7, rtol=1e-4)
    assert max((expected[name] - stock[name]).abs().max() for name in expected) > 1e-5
    handle.detach()
    assert not any(before_decoder in module._forward_pre_hooks.values() for module in model.modules())


# Those that act inside attention, at strengths that show.
IN_ATTENTION = {"cca": 1.0, "pai": 0.5, "uac": 1.0, "adaptvis": 1.0}


def peft_copy(model: Any) -> Any:
    import peft

    lora = peft.LoraConfig(target_modules=["lm_head"], r=2, modules_to_save=["language_model"])
    return peft.get_peft_model(model, lora).eval()


def around_the_decoder(wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def replace(model: Any) -> Any:
        model.model.language_model = wrap(model.model.language_model)
        return model

    replace.__name__ = wrap.__name__
    return replace


@pytest.mark.parametrize("method", IN_ATTENTION)
@pytest.mark.parametrize(
    "change",
    [*map(around_the_decoder, (Wrapper, copy.deepcopy, lambda decoder: Wrapper(copy.deepcopy(decoder)))), peft_copy],
    ids=["wrapper", "copy", "wrapped copy", "modules_to_save"],
)
def test_a_rival_inside_attention_on_a_decoder_that_was_replaced(change: Callable[[Any], Any], method: str) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model, batch=2)
    stock = logits(model, inputs)
    handle = attach(model, method=method, strength=IN_ATTENTION[method])
    expected = logits(model, inputs)
    assert (expected - stock).abs().max() > 1e-5
    model = change(model)
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-7, rtol=0)
    handle.detach()
    torch.testing.assert_close(logits(model, inputs), stock, atol=1e-7, rtol=0)


def each_layer(model: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    layers = model.model.language_model.layers
    for number, layer in enumerate(layers):
        layers[number] = checkpoint_wrapper(layer)


@pytest.mark.parametrize("wrap", [*CHECKPOINTING, each_layer], ids=lambda wrap: wrap.__name__)
def test_a_rival_inside_attention_is_recomputed_or_refused(wrap: Callable[[Any], None]) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    attach(model, method="cca")
    expected = gradients(copy.deepcopy(model), inputs)
    wrap(model)
    if wrap is not wrapper_around_the_vlm:
        with pytest.raises(InputError, match=r"gradient checkpointing calls again later|runs the decoder alone again"):
            gradients(model, inputs)
        return
    found = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in gradients(model, inputs).items()}
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("method", ["agci", "bapa"])
def test_finished_steps_are_forgotten(method: str) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5) if method == "agci" else attach(model, method=method)
    wrapper_around_the_vlm(model)
    for _ in range(3):
        gradients(model, inputs)
    assert len(handle.recomputations._waiting) == 0


def test_two_models_share_a_decoder() -> None:
    """Called in turn, each has its own lambda, and the decoder does not gather hooks."""
    models = [build_model("llava"), build_model("llava")]
    inputs = make_inputs("llava", models[0])
    decoder = models[0].model.language_model
    models[1].model.language_model = decoder
    stock = logits(models[0], inputs)
    handles = [attach(model, lam) for model, lam in zip(models, (0.5, 1.0), strict=True)]
    first = [logits(model, inputs) for model in models]
    for model, found in zip(models, first, strict=True):
        assert torch.equal(logits(model, inputs), found)
        assert not torch.equal(found, stock)
    assert not torch.equal(*first)
    assert [handle.injections for handle in handles] == [2, 2]
    assert len(decoder._forward_pre_hooks) == 1
    handles[0].detach()
    assert torch.equal(logits(models[0], inputs), stock)
    assert torch.equal(logits(models[1], inputs), first[1])


def test_second_call_with_the_same_embeddings() -> None:
    """A vlm that calls its decoder twice with one tensor gets the same twice; the images count once."""
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5)
    decoder = model.model.language_model
    with recorded_decoder_inputs(model) as seen:
        seen_before: list[torch.Tensor] = []
        hook = decoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen_before.append(kwargs["inputs_embeds"]), with_kwargs=True, prepend=True
        )
        model(**inputs)
        hook.remove()
        decoder(inputs_embeds=seen_before[0])
    assert torch.equal(seen[0], seen[1])
    assert handle.injections == 1


def test_decoder_called_by_position() -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    with torch.no_grad(), recorded_decoder_inputs(model) as stock:
        model(**inputs)

    received: list[torch.Tensor] = []
    decoder = model.model.language_model
    handle = attach(model, 0.5)
    original = decoder.forward
    decoder.forward = lambda *args, **kwargs: received.append(args[4]) or original(*args, **kwargs)
    # As a vlm that calls its decoder by position, without a module in between:
    call = type(decoder).__call__
    try:
        type(decoder).__call__ = lambda self, attention_mask=None, inputs_embeds=None, **kwargs: call(
            self, None, attention_mask, None, None, inputs_embeds
        )
        with torch.no_grad():
            model(**inputs)
    finally:
        type(decoder).__call__ = call
    found = images_of(inputs["input_ids"], model.config.image_token_id, image_tokens("llava"))
    expected = expected_embeds(stock[0], found, 0.5)
    torch.testing.assert_close(received[0].double(), expected, atol=1e-5, rtol=0)
    assert handle.injections == 1
