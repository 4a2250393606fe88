"""Hooks of other people beside ours: what they change is seen, and their order stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoder_inputs import logits
from tiny_checkpoints import build_model, make_inputs

from transformers_agci import attach, self_check
from transformers_agci.families import decoder_of
from transformers_agci.method.handle import current_handle

pytestmark = pytest.mark.filterwarnings("ignore")

Change = Callable[[torch.Tensor], torch.Tensor]


def lengthened(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([tokens[:, :1], tokens], dim=1)


def shifted(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.roll(1, dims=1)


def copied(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.clone()


def hook_that(change: Change) -> Callable[..., Any]:
    """A pre-hook that changes what a vlm is given token by token; 5.x gives it ids by position."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = {**kwargs, "position_ids": None} | ({"input_ids": args[0]} if args else {})
        names = [name for name in ("input_ids", "attention_mask", "mm_token_type_ids") if given.get(name) is not None]
        return (), given | {name: change(given[name]) for name in names}

    return hook


@pytest.mark.parametrize("change", [lengthened, shifted], ids=lambda change: change.__name__)
def test_hook_that_moves_the_images_is_refused(family: str, model: Any, change: Change) -> None:
    """Registered after ours, it moves the images away from where they were found."""
    inputs = make_inputs(family, model)
    handle = attach(model, 0.5)
    model.model.register_forward_pre_hook(hook_that(change), with_kwargs=True)
    with torch.no_grad():
        with handle.suspended():
            model(**inputs)
        with pytest.raises(ValueError, match="another hook changed the sequence"):
            model(**inputs)
    assert handle.injections == 0


def test_hook_that_copies_the_tokens_is_none_of_our_business(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    handle = attach(model, 0.5)
    expected = logits(model, inputs)
    model.model.register_forward_pre_hook(hook_that(copied), with_kwargs=True)
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-6, rtol=0)
    assert handle.injections == 2


@pytest.mark.parametrize("method", ["bapa", "cca"])
@pytest.mark.parametrize("change", [lengthened, shifted], ids=lambda change: change.__name__)
def test_hook_that_moves_the_images_of_a_rival(change: Change, method: str) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, method=method)
    model.model.register_forward_pre_hook(hook_that(change), with_kwargs=True)
    with pytest.raises(ValueError, match="another hook changed the sequence"):
        logits(model, inputs)
    handle.strength = 0
    logits(model, inputs)


@pytest.mark.parametrize("method", ["agci", "bapa"])
def test_hook_that_changes_the_text_leaves_the_images_where_they_are(method: str) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5) if method == "agci" else attach(model, method=method)

    def other_last_word(ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([ids[:, :-1], 1 + ids[:, -1:] % 2], dim=1)

    before = logits(model, inputs)
    model.model.register_forward_pre_hook(hook_that(other_last_word), with_kwargs=True)
    assert not torch.equal(logits(model, inputs), before)
    assert handle.injections == 2 * before.shape[0]


def test_vlm_whose_hooks_were_removed_is_refused() -> None:
    """Nothing would be injected, and nobody would hear of it."""
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    attach(model, 0.5)
    model.model._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="was called directly after image features had been made"):
        logits(model, inputs)


def hook_names(model: Any) -> list[list[str]]:
    vlm = model.model
    kinds = vlm._forward_pre_hooks, vlm._forward_hooks, decoder_of(vlm)._forward_pre_hooks
    return [[getattr(hook, "__name__", str(hook)) for hook in hooks.values()] for hooks in kinds]


def test_suspended_and_self_check_keep_the_order_of_hooks() -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5)

    def theirs(module: Any, args: Any) -> None:
        """A hook that came after ours."""

    model.model.register_forward_pre_hook(theirs)
    model.model.language_model.register_forward_pre_hook(theirs)
    before = hook_names(model)
    assert before[0] == ["before_vlm", "theirs"]
    with handle.suspended():
        logits(model, inputs)
    assert hook_names(model) == before
    self_check(model, inputs)
    assert hook_names(model) == before


def test_suspended_leaves_a_detached_handle_detached() -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    stock = logits(model, inputs)
    handle = attach(model, 0.5)
    handle.detach()
    with handle.suspended():
        pass
    assert current_handle(model) is None
    assert hook_names(model) == [[], [], []]
    handle = attach(model, 0.5)
    with handle.suspended():
        handle.detach()
    assert not handle.attached
    assert torch.equal(logits(model, inputs), stock)
