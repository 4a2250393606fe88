"""VCD and PAI: logits held against those of a second pass, which is made here from whole prompts."""

import logging
import math
from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE
from naive_attention import GREEDY, MARKS, NAMES, built
from tiny_families import TEXT, TINY, make_batch

from transformers_agci import InputError, agci, attach

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_vcd_against_whole_prompts(name: str, beams: int) -> None:
    """(1 + alpha) l(v) - alpha l(v'), cut below beta of the largest; v' by the noise of the docstring, redone here."""
    model, batch = built(name), make_batch(TINY[name], [[TEXT, "plain", TEXT], [TEXT, TEXT, "plain", TEXT]])
    handle = attach(model, method="vcd", strength=1, seed=3)
    processor = handle.logits_processor(batch.inputs)
    settings = {**GREEDY, "num_beams": beams}
    answer = model.generate(**batch.inputs, **settings, logits_processor=[processor])
    pixels = batch.inputs["pixel_values"]
    x = torch.linspace(-6, 6, 1000, dtype=torch.float64)
    left = float((1 - (1e-5 + torch.sigmoid(x) * (5e-3 - 1e-5)))[:501].prod())
    draw = torch.Generator().manual_seed(3)  # of one image, patch by patch; the other one's is the same
    noise = torch.stack([torch.randn(pixels.shape[1:], generator=draw) for _ in range(len(pixels) // 2)]).repeat(
        2, *[1] * (pixels.dim() - 1)
    )
    noised = dict(batch.inputs, pixel_values=math.sqrt(left) * pixels + math.sqrt(1 - left) * noise)
    handle.detach()
    clean, dark = model(**batch.inputs).logits[:, -1], model(**noised).logits[:, -1]
    wanted = (2 * clean - dark).repeat_interleave(beams, dim=0)[:, 40:]  # the tokens before are suppressed
    found = processor.first[:, 40:]
    torch.testing.assert_close(found - found[:, :1], wanted - wanted[:, :1], atol=2e-5, rtol=1e-4)
    if beams > 1:
        return
    for row in range(2):  # each next token, from whole prompts without any cache
        ids = answer[row : row + 1]
        prompt = batch.inputs["input_ids"].shape[1]
        for step in range(3):
            both = []
            for source in (batch.inputs, noised):
                given = _row(name, source, row)
                new = ids[:, prompt : prompt + step]
                given["input_ids"] = torch.cat([given["input_ids"], new], dim=1)
                given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(new)], dim=1)
                if "mm_token_type_ids" in given:
                    given["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
                both.append(model(**given).logits[0, -1])
            scores = 2 * both[0] - both[1]
            scores[both[0] < both[0].max() + math.log(0.1)] = -math.inf
            scores[MARKS] = -math.inf
            assert int(scores.argmax()) == int(ids[0, prompt + step])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_vcd_in_a_second_turn_is_vcd_on_the_whole_conversation(name: str) -> None:
    model, batch = built(name), make_batch(TINY[name], [[TEXT, "plain", TEXT]])
    handle = attach(model, method="vcd", strength=1, seed=3)
    more = torch.tensor([[50, 51, 52]])
    whole = dict(batch.inputs)
    whole["input_ids"] = torch.cat([whole["input_ids"], more], dim=1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = (whole["input_ids"] == 30).long()
    once = handle.logits_processor(whole)
    wanted = model.generate(**whole, **GREEDY, logits_processor=[once])
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    model(**batch.inputs, **{CACHE: cache})
    later = handle.logits_processor(whole)
    text = {key: whole[key] for key in ("input_ids", "attention_mask")}
    found = model.generate(**text, **GREEDY, **{CACHE: cache}, logits_processor=[later])
    assert torch.equal(found, wanted)
    torch.testing.assert_close(later.first, once.first, atol=2e-5, rtol=1e-4)


def _row(name: str, inputs: Any, row: int) -> dict[str, torch.Tensor]:
    """One prompt of the batch, padding left out, with its image."""
    kept = inputs["attention_mask"][row].bool()
    given = {
        key: value[row : row + 1, kept]
        for key, value in inputs.items()
        if value.shape == inputs["attention_mask"].shape
    }
    if name == "vipllava":
        return given | {"pixel_values": inputs["pixel_values"][row : row + 1]}
    size = int(inputs["image_grid_thw"][0].prod())
    return given | {
        "pixel_values": inputs["pixel_values"][row * size : (row + 1) * size],
        "image_grid_thw": inputs["image_grid_thw"][row : row + 1],
    }


@torch.no_grad()
def test_pai_contrast_against_the_prompt_without_image() -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT], [TEXT, TEXT, "plain", TEXT]])
    handle = attach(model, method="pai", strength=0.5, gamma=1.5, first_layer=0)
    processor = handle.logits_processor(batch.inputs)
    boosted = model(**batch.inputs).logits[:, -1].log_softmax(-1)
    model.generate(**batch.inputs, do_sample=False, max_new_tokens=2, logits_processor=[processor])
    for row in range(2):
        ids = [t for t in batch.inputs["input_ids"][row].tolist() if t not in (0, 30)]
        with handle.suspended():
            text = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        wanted = 1.5 * (boosted[row] - text) + text
        torch.testing.assert_close(processor.first[row], wanted, atol=2e-5, rtol=1e-4)
    assert attach_neutral(model, handle).logits_processor(batch.inputs) is None


def attach_neutral(model: Any, handle: Any) -> Any:
    handle.strength = 0
    return handle


def test_a_second_pass_needs_the_logits() -> None:
    model = built("vipllava")
    for method in ("vcd", "pai", "adaptvis"):
        with pytest.raises(InputError, match="has no output matrix: give the model around it"):
            attach(model.model, method=method, strength=1)


@torch.no_grad()
def test_numbers_too_large_to_compute_with_are_an_error() -> None:
    model, batch = built("vipllava"), make_batch(TINY["vipllava"], [[TEXT, "plain", TEXT]])
    for method, options, message in (
        ("pai", {"gamma": 1e308}, r"The logits of Rival\(pai.* are no numbers: give a smaller strength or option"),
        ("vcd", {"strength": 3e38}, r"The logits of Rival\(vcd.* are no numbers"),
        ("adaptvis", {"w_high": 1e39}, r"The weights of adaptvis are 0\.5 and 1e\+39, more than"),
        (
            "pai",
            {"strength": 1e39},
            r"strength is 1e\+39, which is more than torch\.float32, the model's type, can hold",
        ),
    ):
        with (
            pytest.raises(InputError, match=message),
            agci(model, method=method, **{"strength": 1, **options}) as handle,
        ):
            processor = handle.logits_processor(batch.inputs)
            more = {} if processor is None else {"logits_processor": [processor]}
            model.generate(**batch.inputs, **GREEDY, **more)


def test_layers_that_the_model_does_not_have_are_said(caplog: pytest.LogCaptureFixture) -> None:
    model = built("vipllava")  # two layers
    with caplog.at_level(logging.WARNING, "transformers_agci"):
        with agci(model, method="pai", strength=1, first_layer=1):
            assert "raises no score" not in caplog.text
        with agci(model, method="pai", strength=1):  # from layer 2 on
            assert "last_layer=31, family=vipllava, images=0) raises no score" in caplog.text
