"""The contract of every family beyond the paper's six, on tiny random models of transformers' own classes.

Which tokens belong to which image is known from how the prompts were made (tiny_families/), never from our own
search; what the decoder should receive is the formula in float64. The paper's six have test_hooks.py.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE, formula, recorded_decoder_inputs, training_gradients
from tiny_families import BLIND, BROKEN, ROWS, TEXT, TINY, Batch, TinyFamily, codes, grids, make_batch

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, attach
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method.handle import current_handle

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# Two images with text between; none; two adjacent; one of several tiles, or larger.
RICH = [[TEXT, "plain", TEXT, "tiled", TEXT], [TEXT], ["plain", "tiled", TEXT], [TEXT, "tiled", TEXT, TEXT]]
MARKS = list(range(40))  # a random model would generate them, and stock would look for their images
AXES = {"hunyuan_vl": 4}  # of position ids
TWO = [[TEXT, "plain", TEXT], [TEXT, "tiled", TEXT]]

families = pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))


VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
BEFORE_5_18 = {
    ("perception_lm", "embeds"): "it then takes pixels with ids only",
    ("lfm2_vl", "beams"): "generate() then deals the images of a prompt to the wrong beams",
    ("paligemma", "checkpointing"): "it then wants token_type_ids in training",
}
M_ROPE_4 = dict.fromkeys(("qwen2_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "gemma3"), "second turn")


@pytest.fixture(autouse=True)
def stock_gives_images(request: pytest.FixtureRequest) -> None:
    """Skip the families whose images stock itself does not hand on before 5.18; the last test shows what is said."""
    callspec = getattr(request.node, "callspec", None)
    family = callspec.params.get("family") if callspec else None
    if family is not None and family.model_type in BLIND:
        pytest.skip("before transformers 5.18 its images do not come in")


def unless(family: TinyFamily, test: str) -> None:
    """Skip where stock itself cannot do this, which the notes of the family or of older versions say."""
    if test in family.notes:
        pytest.skip(family.notes[test])
    if VERSION < (5, 18) and (family.model_type, test) in BEFORE_5_18:
        pytest.skip(BEFORE_5_18[family.model_type, test])
    if VERSION < (5, 0) and M_ROPE_4.get(family.model_type) == test:
        pytest.skip("4.57 counts the mask of a later turn with images from its beginning")


def expected(before: torch.Tensor, images: list[tuple[int, list[int]]], lam: float) -> torch.Tensor:
    """`before` [B, S, D] with the formula applied in float64 to the positions of each image."""
    result = before.double().clone()
    for row, positions in images:
        result[row, positions] = formula(before[row, positions], lam)
    return result


def assert_formula(model: Any, batch: Batch, lam: float, **call: Any) -> None:
    with recorded_decoder_inputs(model, True) as before, recorded_decoder_inputs(model) as after:
        model(**batch.inputs, **call)
    assert len(before) == len(after) == 1
    wanted = expected(before[0], batch.images, lam)
    assert (wanted - before[0]).abs().max() > 1e-4
    torch.testing.assert_close(after[0].double(), wanted, atol=1e-5, rtol=0)


def test_every_family_has_a_tiny_model() -> None:
    six = {"qwen2_5_vl", "qwen3_vl", "gemma3n", "internvl", "llava_next"}
    missing = set(SUPPORTED_FAMILIES) - six - set(ROWS)
    assert not missing, f"put builders of {missing} into tests/tiny_families/"
    assert set(ROWS) <= set(SUPPORTED_FAMILIES)
    newest = {family.model_type for family in (*grids.NEWEST, *codes.NEWEST)}
    assert set(ROWS) - set(TINY) <= newest | set(BROKEN) or VERSION < (5, 23)
    assert set(TINY) | set(BROKEN) == set(ROWS) or VERSION < (5, 24)


@pytest.mark.parametrize("name", BROKEN or [pytest.param("", marks=pytest.mark.skip(reason="none here"))])
@torch.no_grad()
def test_stock_fails_by_itself(name: str) -> None:
    """The families that are left out of all tests on this version of transformers."""
    model, batch = ROWS[name].build(), make_batch(ROWS[name], [[TEXT, "plain", TEXT]])
    with pytest.raises(AttributeError, match="image_outputs"):
        model(**batch.inputs)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("side", ["left", "right"])
@families
@torch.no_grad()
def test_decoder_receives_the_formula(family: TinyFamily, side: str) -> None:
    model = family.build()
    batch = make_batch(family, RICH, side)
    stock = model(**batch.inputs).logits
    handle = attach(model, 1.0)
    assert_formula(model, batch, 1.0)
    assert handle.injections == len(batch.images) == 5
    handle.lam = 0.0
    assert torch.equal(model(**batch.inputs).logits, stock)
    assert handle.injections == 5


@pytest.mark.slow
@families
@torch.no_grad()
def test_batch_scope_takes_one_mean(family: TinyFamily) -> None:
    model = family.build()
    batch = make_batch(family, RICH)
    attach(model, 0.5, scope="batch")
    with recorded_decoder_inputs(model, True) as before, recorded_decoder_inputs(model) as after:
        model(**batch.inputs)
    context = torch.cat([before[0][row, places] for row, places in batch.images]).double().mean(0)
    wanted = before[0].double().clone()
    for row, places in batch.images:
        wanted[row, places] = formula(before[0][row, places], 0.5, context)
    torch.testing.assert_close(after[0].double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
@families
@torch.no_grad()
def test_embeddings_in_place_of_ids(family: TinyFamily) -> None:
    """Separators are then told apart by their embeddings."""
    unless(family, "embeds")
    model = family.build()
    batch = make_batch(family, RICH)
    embeds = model.get_input_embeddings()(batch.inputs["input_ids"])
    handle = attach(model, 1.0)
    given = {name: value for name, value in batch.inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}
    assert_formula(model, Batch(given, batch.images), 1.0)
    assert handle.injections == 5


@pytest.mark.slow
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@families
@torch.no_grad()
def test_generate_injects_once_per_image(family: TinyFamily, cache: bool) -> None:
    unless(family, "cache" if cache else "no cache")
    model = family.build()
    batch = make_batch(family, RICH)
    handle = attach(model, 1.0)
    with recorded_decoder_inputs(model, True) as before, recorded_decoder_inputs(model) as after:
        model.generate(
            **batch.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=cache, suppress_tokens=MARKS
        )
    assert len(before) == len(after) == 3
    for number, (stock, ours) in enumerate(zip(before, after, strict=True)):
        if cache and number:
            assert ours.shape[1] == 1
            assert torch.equal(ours, stock)
        else:
            torch.testing.assert_close(ours.double(), expected(stock, batch.images, 1.0), atol=1e-5, rtol=0)
    assert handle.injections == 5 * (1 if cache else 3)


@pytest.mark.slow
@families
@torch.no_grad()
def test_beams(family: TinyFamily) -> None:
    unless(family, "beams")
    model = family.build()
    batch = make_batch(family, TWO)
    handle = attach(model, 1.0)
    with recorded_decoder_inputs(model, True) as before, recorded_decoder_inputs(model) as after:
        model.generate(
            **batch.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, num_beams=2, suppress_tokens=MARKS
        )
    images = [(2 * row + beam, places) for row, places in batch.images for beam in (0, 1)]
    torch.testing.assert_close(after[0].double(), expected(before[0], images, 1.0), atol=1e-5, rtol=0)
    assert handle.injections == 4


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@families
@torch.no_grad()
def test_copies_of_a_prompt_with_two_images(family: TinyFamily, how: dict[str, Any]) -> None:
    """Every copy has both images, in their order; where transformers itself mixes them, it is said."""
    unless(family, "beams")
    model = family.build()
    batch = make_batch(family, [["plain", "tiled", TEXT]])
    settings = {"max_new_tokens": 1, "min_new_tokens": 1, "suppress_tokens": MARKS, **how}
    if VERSION < (5, 18) and "omni" in family.model_type:
        with pytest.raises((RuntimeError, ValueError)):
            model.generate(**batch.inputs, **settings)
        pytest.skip("this transformers itself cannot place the images of copies")
    handle = attach(model, 0.0)
    with recorded_decoder_inputs(model) as alone:
        model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
    with recorded_decoder_inputs(model) as copies:
        model.generate(**batch.inputs, **settings)
    handle.lam = 1.0
    if not torch.equal(copies[0], alone[0].expand(2, -1, -1)):
        if VERSION < (5, 18) and not family.model_type.startswith("glm"):
            pytest.skip("this transformers itself deals the images to the wrong copies")
        assert family.model_type.startswith("glm")
        with pytest.raises(ValueError, match=r"not in the order of the prompts.*num_beams"):
            model.generate(**batch.inputs, **settings)
        return
    with recorded_decoder_inputs(model) as after:
        model.generate(**batch.inputs, **settings)
    images = [(copy, places) for copy in (0, 1) for _, places in batch.images]
    torch.testing.assert_close(after[0].double(), expected(copies[0], images, 1.0), atol=1e-5, rtol=0)
    assert handle.injections == 4


@pytest.mark.slow
@families
@torch.no_grad()
def test_second_turn_on_the_same_cache(family: TinyFamily) -> None:
    unless(family, "second turn")
    model = family.build()
    first, second = make_batch(family, [[TEXT, "plain", TEXT]]), make_batch(family, [[TEXT, "tiled", TEXT]], seed=1)
    handle = attach(model, 1.0)
    cache = model(**first.inputs, use_cache=True)[CACHE]
    inputs = dict(second.inputs)
    inputs["attention_mask"] = torch.cat([first.inputs["attention_mask"], inputs["attention_mask"]], dim=1)
    if hasattr(find_vlm(model), "compute_3d_position_ids"):  # they have no positions of their own for a later turn
        past, length = first.inputs["input_ids"].shape[1], second.inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(past, past + length).expand(AXES.get(family.model_type, 3), 1, length)
    assert_formula(model, Batch(inputs, second.images), 1.0, **{CACHE: cache}, use_cache=True)
    assert handle.injections == 2


@pytest.mark.slow
@families
def test_gradient_checkpointing_gives_equal_gradients(family: TinyFamily) -> None:
    unless(family, "checkpointing")
    model = family.build()
    if not model.supports_gradient_checkpointing:
        pytest.skip("stock cannot checkpoint this model")
    batch = make_batch(family, TWO)
    labels = batch.inputs["input_ids"].where(batch.inputs["input_ids"] >= 40, -100)

    def gradients(lam: float, checkpointing: bool) -> dict[str, torch.Tensor]:
        return training_gradients(model, batch.inputs, labels, lam, checkpointing)[0]

    plain, checkpointed, stock = gradients(0.5, False), gradients(0.5, True), gradients(0.0, False)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], atol=1e-5, rtol=1e-3)
    assert any((plain[name] - stock[name]).abs().max() > 1e-5 for name in plain)


@pytest.mark.slow
@families
@torch.no_grad()
def test_save_and_load_keep_lambda(family: TinyFamily, tmp_path: Path) -> None:
    unless(family, "save")
    model = family.build()
    batch = make_batch(family, TWO)
    attach(model, 0.5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert getattr(loaded.config, LAMBDA_KEY) == 0.5
    handle = current_handle(loaded) or attach(loaded, getattr(loaded.config, LAMBDA_KEY))
    torch.testing.assert_close(loaded(**batch.inputs).logits, model(**batch.inputs).logits, atol=1e-5, rtol=0)
    assert handle.injections == 2


@pytest.mark.slow
@families
@torch.no_grad()
def test_lora(family: TinyFamily) -> None:
    import peft

    model = family.build()
    batch = make_batch(family, TWO)
    torch.manual_seed(0)
    of_decoder = {id(module) for module in decoder_of(find_vlm(model)).modules() if isinstance(module, torch.nn.Linear)}
    layers = [name for name, module in model.named_modules() if id(module) in of_decoder]
    layers = [name for name in layers if name.rpartition(".")[2] in family.lora.split("|")]
    lora = peft.LoraConfig(target_modules=layers, r=2, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, lora).eval()
    handle = attach(wrapped, 0.5)
    adapted = wrapped(**batch.inputs).logits
    assert handle.injections == 2
    handle.lam = 0.0
    assert (adapted - wrapped(**batch.inputs).logits).abs().max() > 1e-5
    handle.lam = 0.5
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(**batch.inputs).logits, adapted, atol=1e-4, rtol=0)
    assert handle.injections == 4


@torch.no_grad()
def test_perception_lm_tells_touching_images_apart_in_generate() -> None:
    """Nothing but the pixels says where an image ends, and generate() drops them; noted through a replay, too."""
    from transformers_agci.inference.vision_replay import VisionReplay

    model = TINY["perception_lm"].build()
    batch = make_batch(TINY["perception_lm"], [["plain", "plain", TEXT]])
    stock = type(model.model).get_image_features
    with VisionReplay(model) as replay:
        replay.set_images(("a", "b"))
        handle = attach(model, 1.0)
        for calls in (1, 2):
            with recorded_decoder_inputs(model, True) as before, recorded_decoder_inputs(model) as after:
                model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
            torch.testing.assert_close(after[0].double(), expected(before[0], batch.images, 1.0), atol=1e-5, rtol=0)
            assert handle.injections == 2 * calls
    assert (replay.calls, replay.replays) == (1, 1)
    twin = copy.deepcopy(model)
    assert twin.model.get_image_features.stock.__self__ is twin.model
    handle.detach()
    assert model.model.get_image_features.__func__ is stock


@pytest.mark.skipif(VERSION >= (5, 18), reason="it is served from 5.18 on")
@pytest.mark.parametrize("name", ["emu3", "fuyu"])
@torch.no_grad()
def test_images_that_stock_does_not_hand_on_are_no_silence(name: str) -> None:
    if name not in TINY:
        pytest.skip(f"this transformers has no {name}")
    model, batch = TINY[name].build(), make_batch(TINY[name], [[TEXT, "plain", TEXT]])
    attach(model, 0.5)
    with pytest.raises(ValueError, match="no images came with it"):
        model(**batch.inputs)


@torch.no_grad()
def test_a_forward_that_names_nothing_is_given_images() -> None:
    """As where a framework puts its own function, which hands all on, in place of a class's forward."""
    model, batch = TINY["idefics3"].build(), make_batch(TINY["idefics3"], [[TEXT, "plain", TEXT]])
    vlm = find_vlm(model)
    stock = type(vlm)

    class Wrapped(stock):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    vlm.__class__ = Wrapped
    handle = attach(model, 0.5)
    model(**batch.inputs)
    assert handle.injections == 1
