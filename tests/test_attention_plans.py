"""The decoder's calls on keys that are there leave cuDNN out, all others keep it; its switch stays as it was found."""

from typing import Any

import pytest
import torch
from tiny_checkpoints import FAMILIES, build_model, make_inputs

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.attention_plans import VaryingLengths
from transformers_agci.inference.prefix_replay import PrefixReplay, Prompts


def switch_seen(decoder: Any, seen: list[bool]) -> Any:
    """Note the switch at the decoder's first layer."""
    return decoder.layers[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_prompt_keeps_it(family: str, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(family)
    decoder, seen = decoder_of(find_vlm(model)), []
    before = torch.backends.cuda.cudnn_sdp_enabled()
    hook, own = switch_seen(decoder, seen), vars(decoder).get("forward")
    torch.backends.cuda.enable_cudnn_sdp(found)
    try:
        with torch.no_grad(), VaryingLengths(model):
            model.generate(**make_inputs(family, model, batch=2), max_new_tokens=3, min_new_tokens=3, do_sample=False)
            assert torch.backends.cuda.cudnn_sdp_enabled() == found
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        hook.remove()
    assert seen == [found, False, False]
    assert vars(decoder).get("forward") is own


def test_a_cache_that_a_replay_fills_counts_as_there() -> None:
    model = build_model("qwen2_5_vl")
    inputs, seen = make_inputs("qwen2_5_vl", model, batch=2), []
    ids = inputs["input_ids"]
    other = ids.clone()
    other[:, -1] += 1
    hook = switch_seen(decoder_of(find_vlm(model)), seen)
    settings = {"max_new_tokens": 1, "do_sample": False}
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with torch.no_grad(), VaryingLengths(model), PrefixReplay(model) as prefix:
            for number, given in enumerate((ids, other)):
                prefix.set_prompts(Prompts(("a", "b"), given, torch.ones_like(given)), keep=number == 0)
                model.generate(**inputs | {"input_ids": given}, **settings)
            assert prefix.replayed_tokens > 0
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        hook.remove()
    assert seen == [True, False]


def test_an_error_leaves_the_switch_as_it_was() -> None:
    model = build_model("llava")
    decoder, seen = decoder_of(find_vlm(model)), []

    def fails(*_: Any) -> None:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if len(seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    before = torch.backends.cuda.cudnn_sdp_enabled()
    hook = decoder.layers[0].register_forward_pre_hook(fails)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with torch.no_grad(), VaryingLengths(model), pytest.raises(torch.OutOfMemoryError):
            model.generate(**make_inputs("llava", model, batch=1), max_new_tokens=3, min_new_tokens=3)
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        hook.remove()
    assert seen == [True, False]
