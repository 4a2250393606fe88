"""Callers that merge image features themselves, or reach the decoder around the model: an error, never silence.

Every check first runs at lambda 0, where the same calls must do what stock does.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from decoder_inputs import CACHE, recorded_decoder_inputs
from tiny_checkpoints import TRANSFORMERS_5, build_model, make_inputs
from tiny_families import TINY

from transformers_agci import attach
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method import hooks, thread_state

pytestmark = pytest.mark.filterwarnings("ignore")


def image_features(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[N, D], made outside of the model's forward, as a framework does."""
    names = ("pixel_values", "image_grid_thw", "image_sizes")
    found = model.model.get_image_features(**{name: inputs[name] for name in names if name in inputs})
    while not isinstance(found, torch.Tensor):
        if hasattr(found, "pooler_output"):
            found = found.pooler_output
        elif isinstance(found[0], torch.Tensor):
            found = torch.cat([part.flatten(0, -2) for part in found])
        else:
            found = found[0]
    return found.flatten(0, -2)


def merged(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, S, D]: the text's embeddings with the image features written in."""
    embeds = model.get_input_embeddings()(inputs["input_ids"]).clone()
    features = image_features(model, inputs)
    mask = inputs["input_ids"] == model.config.image_token_id
    if len(features) == int(mask.sum()):
        embeds[mask] = features
    else:  # LLaVA-NeXT before its features are packed: any will do
        embeds[mask] = features[: int(mask.sum())] if len(features) > int(mask.sum()) else features[:1]
    return embeds


def text_inputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = inputs["input_ids"]
    return {
        "input_ids": ids.masked_fill(ids == model.config.image_token_id, 20),
        "attention_mask": inputs["attention_mask"],
    }


def by_embeds_to_the_model(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    model(inputs_embeds=merged(model, inputs), attention_mask=inputs["attention_mask"])


def by_embeds_to_the_inner_model(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    model.model(inputs_embeds=merged(model, inputs), attention_mask=inputs["attention_mask"])


def by_embeds_to_the_decoder(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    decoder_of(model.model)(inputs_embeds=merged(model, inputs), attention_mask=inputs["attention_mask"])


def by_forward_of_the_decoder(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    decoder_of(model.model).forward(inputs_embeds=merged(model, inputs), attention_mask=inputs["attention_mask"])


def by_generate(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    embeds = merged(model, inputs)
    model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=2)


def by_forward_of_the_inner_model(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    model.model.forward(**inputs)


def by_a_hook_on_the_model(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """As ms-swift does in training: a pre-hook takes ids and pixels and hands embeddings on."""

    def merge(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"inputs_embeds": merged(model, kwargs), "attention_mask": kwargs["attention_mask"]}

    hook = model.register_forward_pre_hook(merge, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        hook.remove()


MERGING = [
    by_embeds_to_the_model,
    by_embeds_to_the_inner_model,
    by_embeds_to_the_decoder,
    by_forward_of_the_decoder,
    by_generate,
    by_forward_of_the_inner_model,
    by_a_hook_on_the_model,
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("merge", MERGING, ids=lambda merge: merge.__name__)
def test_own_merging_is_refused(family: str, model: Any, merge: Callable[..., None]) -> None:
    inputs = make_inputs(family, model, batch=2)
    handle = attach(model, 0.0)
    with torch.no_grad():
        merge(model, inputs)  # stock takes it
        handle.lam = 0.5
        with pytest.raises(ValueError, match="would inject nothing"):
            merge(model, inputs)
        assert thread_state.is_idle()
        assert handle.injections == 0
        model(**inputs)  # and nothing is left of it
    assert handle.injections == 2


def test_cached_vision_features_through_the_projector_alone() -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.0)
    with torch.no_grad():
        tower = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state[:, 1:]
        handle.lam = 0.5
        features = model.model.multi_modal_projector(tower)
        embeds = model.get_input_embeddings()(inputs["input_ids"]).clone()
        embeds[inputs["input_ids"] == model.config.image_token_id] = features[0]
        with pytest.raises(ValueError, match="would inject nothing"):
            model(inputs_embeds=embeds)


def test_retriever_on_this_backbone_is_refused() -> None:
    """ColQwen2 merges by itself."""
    import transformers

    if not TRANSFORMERS_5:
        pytest.skip("4.57's ColQwen2 asks this vision tower for a method that it lacks")
    backbone = build_model("qwen2_5_vl")
    config = transformers.ColQwen2Config(vlm_config=backbone.config, embedding_dim=8)
    model: Any = transformers.ColQwen2ForRetrieval(config).eval()
    inputs = make_inputs("qwen2_5_vl", backbone)
    pixels = inputs["pixel_values"][None]
    call = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_grid_thw")}
    with torch.no_grad():
        handle = attach(model, 0.0)
        model(**call, pixel_values=pixels)
        handle.lam = 0.5
        with pytest.raises(ValueError, match="ColQwen2"):
            model(**call, pixel_values=pixels)


def test_text_after_features_clears_the_mark(family: str, model: Any) -> None:
    """Features may be made for another purpose; a prompt by ids shows that what follows is text."""
    inputs = make_inputs(family, model, batch=2)
    text = text_inputs(model, inputs)
    embeds = model.get_input_embeddings()(text["input_ids"])
    handle = attach(model, 0.5)
    with torch.no_grad():
        image_features(model, inputs)
        model(**text)
        model(inputs_embeds=embeds, attention_mask=text["attention_mask"])
        decoder_of(model.model)(inputs_embeds=embeds)
    assert handle.injections == 0
    assert thread_state.is_idle()


def watched(model: Any) -> int:
    return sum(hooks.before_first_layer in part._forward_pre_hooks.values() for part in model.modules())


def test_text_by_forward_of_the_decoder_after_features(family: str, model: Any) -> None:
    inputs = make_inputs(family, model)
    embeds = model.get_input_embeddings()(text_inputs(model, inputs)["input_ids"])
    decoder = decoder_of(model.model)
    with torch.no_grad():
        stock = decoder.forward(inputs_embeds=embeds).last_hidden_state
        handle = attach(model, 0.5)
        assert watched(model) == 0, "a run pays for it only after features were made"
        image_features(model, inputs)
        assert watched(model) == 1
        assert torch.equal(decoder.forward(inputs_embeds=embeds).last_hidden_state, stock)
        model(**inputs)
        assert watched(model) == 0
        image_features(model, inputs)
        handle.detach()
    assert watched(model) == 0


@pytest.mark.parametrize("name", ["granite_docling", "glm5_next", "minicpmv4_6"])
def test_what_the_first_layer_is_given_by_forward_of_the_decoder(name: str) -> None:
    """Granite's decoder scales it, GLM-5-Next's doubles it: text is never refused."""
    if name not in TINY:
        pytest.skip("not in this transformers")
    model = TINY[name].build().eval()
    vlm = find_vlm(model)
    handle = attach(model, 0.5)
    text = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]]))
    images = text.detach().clone()
    images[:, 1:3] = torch.randn(2, 2, text.shape[-1])
    with torch.no_grad():
        for embeds in (text, images):
            handle.made_features = True
            hooks._note_features(handle, text)
            assert watched(model) == 1
            refused = embeds is images and name != "granite_docling"
            with pytest.raises(ValueError, match="called directly") if refused else contextlib.nullcontext():
                decoder_of(vlm).forward(inputs_embeds=embeds)
    assert thread_state.is_idle()


def test_another_thread_between_features_and_the_forward_of_the_decoder(family: str, model: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    inputs = make_inputs(family, model)
    text = text_inputs(model, inputs)
    attach(model, 0.5)

    @torch.no_grad()
    def ask() -> None:
        model(**text)

    with torch.no_grad(), ThreadPoolExecutor(1) as pool:
        embeds = merged(model, inputs)
        pool.submit(ask).result()
        with pytest.raises(ValueError, match="called directly"):
            decoder_of(model.model).forward(inputs_embeds=embeds)
        model(**text)
    assert watched(model) == 0


def test_features_between_a_forward_call_and_its_backward() -> None:
    """Checkpointing runs the layers again in the backward pass: that is no new prompt."""
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    embeds = merged(model, inputs).detach().requires_grad_()
    decoder = decoder_of(model.model)

    def run(given: torch.Tensor) -> torch.Tensor:
        return decoder.forward(inputs_embeds=given).last_hidden_state

    handle = attach(model, 0.5)
    out = torch.utils.checkpoint.checkpoint(run, embeds, use_reentrant=False)
    image_features(model, inputs)
    assert thread_state.features_wait(handle)
    out.sum().backward()
    assert embeds.grad is not None
    assert thread_state.features_wait(handle)
    thread_state.clear_mark(handle)


def test_images_after_features_are_injected(family: str, model: Any) -> None:
    inputs = make_inputs(family, model, batch=2)
    handle = attach(model, 0.5)
    with torch.no_grad():
        expected = model(**inputs).logits
        image_features(model, inputs)
        assert torch.equal(model(**inputs).logits, expected)
    assert handle.injections == 4
    assert thread_state.is_idle()


def abort_in_vision(model: Any, error: BaseException) -> Any:
    """Hook that raises in the last vision module."""

    def abort(*_: Any) -> None:
        raise error

    vlm = model.model
    last = next(
        getattr(vlm, name) for name in ("visual", "multi_modal_projector", "embed_vision") if hasattr(vlm, name)
    )
    part = getattr(last, "merger", None) or list(last.children())[-1]
    return part.register_forward_hook(abort)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("where", ["in the model", "outside"])
def test_decoder_call_after_an_aborted_vision_tower(family: str, model: Any, error: BaseException, where: str) -> None:
    """Text alone, neither injected nor refused."""
    inputs = make_inputs(family, model, batch=2)
    text = text_inputs(model, inputs)
    embeds = model.get_input_embeddings()(text["input_ids"])
    decoder = decoder_of(model.model)
    handle = attach(model, 0.5)
    with torch.no_grad():
        with handle.suspended():
            expected = decoder(inputs_embeds=embeds).last_hidden_state
        hook = abort_in_vision(model, error)
        with pytest.raises(type(error)):
            model(**inputs) if where == "in the model" else image_features(model, inputs)
        hook.remove()
        with recorded_decoder_inputs(model) as seen:
            assert torch.equal(decoder(inputs_embeds=embeds).last_hidden_state, expected)
            model.model(inputs_embeds=embeds, attention_mask=text["attention_mask"])
        assert all(torch.equal(one, embeds) for one in seen)
        model(**inputs)
    assert handle.injections == 2


@torch.no_grad()
def in_no_grad(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """For threads, which do not take the setting over."""
    return merged(model, inputs)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("between", ["nothing", "text by ids", "another thread", "lambda 0"])
@pytest.mark.parametrize("to", ["model", "decoder"])
def test_merged_features_are_refused_whatever_lies_between(family: str, model: Any, between: str, to: str) -> None:
    """The embeddings tell that they hold images; text by embeddings is served at the same place."""
    from concurrent.futures import ThreadPoolExecutor

    inputs = make_inputs(family, model)
    text = text_inputs(model, inputs)
    handle = attach(model, 0.0 if between == "lambda 0" else 0.5)

    def call(embeds: torch.Tensor) -> None:
        callee = model.model if to == "model" else decoder_of(model.model)
        callee(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])

    with torch.no_grad(), ThreadPoolExecutor(1) as pool:
        embeds = pool.submit(in_no_grad, model, inputs).result() if "thread" in between else merged(model, inputs)
        if between == "text by ids":
            model(**text)
        handle.lam = 0.5
        call(model.get_input_embeddings()(text["input_ids"]))
        with pytest.raises(ValueError, match="would inject nothing"):
            call(embeds)
        call(model.get_input_embeddings()(text["input_ids"]))
    assert handle.injections == 0
    assert thread_state.is_idle()


def test_features_of_another_process_are_warned_of(family: str, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """This model made none, so that they may as well be learnt prompts."""
    inputs = make_inputs(family, model)
    with torch.no_grad():
        embeds = merged(model, inputs)
        attach(model, 0.5)
        for _ in range(2):
            model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    said = [record.getMessage() for record in caplog.records if "the embedding of no token" in record.getMessage()]
    assert len(said) == 1


def test_learnt_prompts_are_text() -> None:
    """PEFT's prompt tuning puts embeddings of no token before every prompt."""
    import peft

    model = build_model("llava")
    inputs = make_inputs("llava", model)
    text = {name: value[:, :6] for name, value in text_inputs(model, inputs).items()}
    width = model.get_input_embeddings().embedding_dim
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_layers=2, token_dim=width)
    wrapped = peft.get_peft_model(model, settings)
    handle = attach(wrapped, 0.5)
    with torch.no_grad():
        image_features(model, inputs)
        wrapped(**text)
    assert handle.injections == 0


def test_decoding_by_embeddings_goes_on(family: str, model: Any) -> None:
    """One token at a time is no prefill: a scheduler may encode the next request's images in between."""
    inputs = make_inputs(family, model)
    attach(model, 0.5)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        image_features(model, inputs)
        step = model.get_input_embeddings()(torch.tensor([[21]]))
        model(inputs_embeds=step, **{CACHE: cache}, use_cache=True)
        with pytest.raises(ValueError, match="would inject nothing"):
            by_embeds_to_the_model(model, inputs)


def test_decoder_called_without_its_hooks_is_an_error(family: str, model: Any) -> None:
    """A subclass that calls `.forward` of its decoder: images came, nothing was injected."""
    inputs = make_inputs(family, model)
    decoder = decoder_of(model.model)
    handle = attach(model, 0.5)
    with torch.no_grad():
        model(**inputs)
        original = type(decoder).__call__
        try:
            type(decoder).__call__ = lambda self, *args, **kwargs: self.forward(*args, **kwargs)
            with pytest.raises(RuntimeError, match="not called through its hooks"):
                model(**inputs)
        finally:
            type(decoder).__call__ = original
    assert handle.injections == 1
