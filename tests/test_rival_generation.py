"""Rivals within attention in batches and in `generate`: caches, turns, beams, threads, and what is refused."""

from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE
from naive_attention import BACKENDS, GREEDY, SCORED, built
from tiny_families import TEXT, TINY, make_batch

from transformers_agci import InputError, attach
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method.rivals import RIVALS
from transformers_agci.method.rivals.handle import attach_from_position_key, current_rival

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

BLANKS_ALIKE = ("lfm3_vl",)  # its tiny model attends evenly to a blank image: UAC has nothing to even out


@pytest.mark.parametrize("method", ["cca", *SCORED])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_padded_batch_is_its_rows(method: str, backend: str) -> None:
    """One image per prompt: every row's next-token logits equal those of the prompt alone."""
    prompts = [[TEXT, "plain", TEXT], [TEXT], [TEXT, TEXT, "plain", TEXT]]
    model, batch = built("vipllava", backend), make_batch(TINY["vipllava"], prompts)
    attach(model, method=method, **SCORED.get(method, {}))
    mask = batch.inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    together = model(**batch.inputs, position_ids=positions).logits[:, -1]
    image = 0
    for row, prompt in enumerate(prompts):
        alone = {"input_ids": batch.inputs["input_ids"][row : row + 1, mask[row].bool()]}
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        if "plain" in prompt:
            alone["pixel_values"] = batch.inputs["pixel_values"][image : image + 1]
            image += 1
        torch.testing.assert_close(model(**alone).logits[0, -1], together[row], atol=2e-6, rtol=1e-4)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_every_family_is_served_or_says_why_not(name: str, method: str) -> None:
    """It acts on each image and on nothing else: a prompt of text stays stock's, and so does all of it after detach."""
    model, batch = TINY[name].build(), make_batch(TINY[name], [[TEXT, "tiled", TEXT, "plain", TEXT]])
    text = make_batch(TINY[name], [[TEXT, TEXT]]).inputs
    stock, stock_text = model(**batch.inputs).logits, model(**text).logits
    try:
        handle = attach(model, method=method, **SCORED[method])
        changed = model(**batch.inputs).logits
    except InputError as error:
        assert RIVALS[method].title in str(error) or "attention" in str(error)  # a sentence with the reason
        return
    assert handle.injections == len(batch.images) == 2
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed[:, -1], stock[:, -1]) or name in BLANKS_ALIKE
    assert torch.equal(model(**text).logits, stock_text)
    handle.detach()
    assert torch.equal(model(**batch.inputs).logits, stock)


@pytest.mark.parametrize("method", ["pai", "uac", "cca"])
@torch.no_grad()
def test_a_static_cache_gives_the_same_tokens(method: str) -> None:
    model, batch = built("vipllava", "sdpa"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method=method, **SCORED.get(method, {}))
    dynamic = model.generate(**batch.inputs, **GREEDY)
    assert torch.equal(model.generate(**batch.inputs, **GREEDY, cache_implementation="static"), dynamic)


@pytest.mark.parametrize("method", ["pai", "uac", "cca"])
@torch.no_grad()
def test_a_second_turn_acts_on_the_images_in_the_cache(method: str) -> None:
    """The last token of a later turn, given alone or with others, has the same logits: its image keys are known."""
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method=method, **SCORED.get(method, {}))
    more = torch.tensor([[50, 51, 52]])

    def last(*cuts: int) -> torch.Tensor:
        cache = transformers.DynamicCache(config=model.config.get_text_config())
        model(**batch.inputs, **{CACHE: cache})
        for start, stop in zip((0, *cuts), (*cuts, 3), strict=True):
            past = cache.get_seq_length()
            ids = more[:, start:stop]
            mask = torch.ones(1, past + ids.shape[1], dtype=torch.long)
            logits = model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits[:, -1]
        return logits

    ours = last(2)
    if method != "pai":  # PAI raises each call's last query: how a turn is cut is part of it
        torch.testing.assert_close(last(), ours, atol=2e-6, rtol=1e-4)
    handle = model.model._agci_rival
    with handle.suspended():
        assert (last(2) - ours).abs().max() > 1e-7


@torch.no_grad()
def test_beams() -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    handle = attach(model, method="pai", **SCORED["pai"])
    beams = model.generate(**batch.inputs, **GREEDY, num_beams=2, num_return_sequences=2)
    assert beams.shape[0] == 2
    assert handle.injections == 2
    handle.detach()
    attach(model, method="adaptvis", strength=1)
    with pytest.raises(InputError, match="beam search does not choose: generate with num_beams=1"):
        model.generate(**batch.inputs, **GREEDY, num_beams=2)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("uac", {"num_beams": 2}, "which beam search repeats with the prompt: generate with num_beams=1"),
        ("adaptvis", {"use_cache": False}, "generate with use_cache=True"),
        ("uac", {"use_cache": False}, "generate with use_cache=True"),
        ("pai", {"use_cache": False}, "generate with use_cache=True"),
        ("pai", {"prompt_lookup_num_tokens": 2}, "generate without an assistant"),
        ("pai", {"prefill_chunk_size": 4}, "generate without it"),
    ],
)
@torch.no_grad()
def test_settings_of_generate_that_would_give_other_numbers_are_refused(
    method: str, settings: dict[str, Any], message: str
) -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    handle = attach(model, method=method, **SCORED[method])
    with pytest.raises(InputError, match=f"^{method} .*{message}"):
        model.generate(**batch.inputs, **GREEDY, **settings)
    assert handle.injections == 0
    model.generate(**batch.inputs, **GREEDY)
    assert handle.injections == 1


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"num_beams": 2, "use_cache": False}])
@torch.no_grad()
def test_the_mask_of_cca_needs_no_cache(settings: dict[str, Any]) -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method="cca")
    kept = model.generate(**batch.inputs, **GREEDY, **{**settings, "use_cache": True})
    assert torch.equal(model.generate(**batch.inputs, **GREEDY, **settings), kept)


def test_flash_attention_is_refused_where_scores_are_needed() -> None:
    for method in ("cca", "adaptvis", "pai", "uac"):
        model = built("qwen2_vl", "flash_attention_2")
        with pytest.raises(InputError, match=r"flash_attention_2 does not show: .*'sdpa' or 'eager'"):
            attach(model, method=method)


def test_a_name_that_is_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def others() -> None:
        """Somebody else's attention."""

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "agci_sdpa", others)
    with pytest.raises(InputError, match="'agci_sdpa' is registered already"):
        attach(built("qwen2_vl"), method="pai", strength=0.2)


@torch.no_grad()
def test_cca_is_refused_where_image_tokens_see_each_other() -> None:
    model, batch = TINY["gemma3"].build(), make_batch(TINY["gemma3"], [[TEXT, "plain", TEXT]])
    attach(model, method="cca")
    with pytest.raises(InputError, match="see each other already: take cca_positions"):
        model(**batch.inputs)


def test_two_methods_that_do_not_combine() -> None:
    model = built("qwen2_vl")
    attach(model, 0.5)
    for method in ("cca", "adaptvis", "pai", "uac", "vcd"):
        assert not RIVALS[method].combines
        with pytest.raises(InputError, match=f"{method} cannot stand beside AGCI"):
            attach(model, method=method)


@pytest.mark.parametrize("method", ["cca", *SCORED])
@torch.no_grad()
def test_a_backend_that_was_set_afterwards_is_an_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method would do nothing, unheard; `detach` leaves the model the backend that it was given."""
    model, batch = built("vipllava", "sdpa"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    stock = built("vipllava", "eager")(**batch.inputs).logits
    handle = attach(model, method=method, **SCORED.get(method, {}))
    with monkeypatch.context() as patch:
        others = transformers.AttentionInterface._global_mapping["sdpa"]
        patch.setitem(transformers.AttentionInterface._global_mapping, "agci_sdpa", others)
        with pytest.raises(InputError, match=r"'agci_sdpa' is registered already, by transformers\."):
            model(**batch.inputs)
    model.set_attn_implementation("eager")
    with pytest.raises(InputError, match=f"was set to eager after {method} had been attached.* attach it again"):
        model(**batch.inputs)
    handle.detach()
    assert decoder_of(find_vlm(model)).config._attn_implementation == "eager"
    assert torch.equal(model(**batch.inputs).logits, stock)


@torch.no_grad()
def test_flash_attention_set_afterwards_is_an_error_where_positions_mean_packing() -> None:
    model, batch = built("vipllava", "sdpa"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    attach(model, method="bapa")
    decoder_of(find_vlm(model)).config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="flash_attention_2 would read packed sequences"):
        model(**batch.inputs)


@torch.no_grad()
def test_a_rival_that_cannot_be_attached_leaves_the_one_of_the_config_on() -> None:
    model = built("qwen2_vl", "flash_attention_2")
    handle = attach_from_position_key(model)
    with pytest.raises(InputError, match="flash_attention_2"):
        attach(model, method="pai", strength=0.2)
    kept = current_rival(model)
    assert kept is not None and kept is not handle
    assert (kept.method, kept.strength, kept.from_config) == ("bapa", 1, True)
