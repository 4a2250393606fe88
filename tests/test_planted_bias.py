"""The planted bias: exactly what it says, on the stock model, in batches with padding and at every decoding step."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_agci import InputError, agci
from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.embedded import Atlas, embedded_model_path
from transformers_agci.embedded.evaluate import composites
from transformers_agci.embedded.fast_forward import FastDecoder, FastVision
from transformers_agci.embedded.probe_set import render_item
from transformers_agci.embedded.training_data import PackedQuestions
from transformers_agci.experiments.planted_bias import planted_bias, row_steps, vision_windows

BETA = 0.7
ROWS = torch.arange(81) // 9 // 3  # of cells, per image token
RENDERED = render_item(Atlas(), ("test", "planted bias"), 0)


def load(attention: str = "sdpa") -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(embedded_model_path(), attn_implementation=attention).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    made = AutoProcessor.from_pretrained(embedded_model_path())
    made.tokenizer.padding_side = "left"
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    return load()


def inputs_for(processor: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """One question per name about composites of one item, padded on the left."""
    images = [Image.fromarray(canvas) for canvas in composites(RENDERED)][: len(names)]
    texts = []
    for name in names:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT.format(caption=name)}]
        messages = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(messages, add_generation_prompt=True))
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


@pytest.fixture(scope="module")
def batch(processor: Any) -> dict[str, torch.Tensor]:
    """Three questions of different lengths: two rows are padded."""
    made = inputs_for(processor, ["owl", "envelope with arrow", "dog"])
    assert (made["attention_mask"] == 0).any(dim=1).sum() == 2
    return made


def test_steps_of_a_grid_whose_rows_do_not_divide() -> None:
    assert row_steps(torch.tensor([5, 6, 7, 8])).tolist() == [0.0, 0.0, 0.5, 1.0]
    assert row_steps(torch.tensor([0, 0, 1, 1]), cell_rows=2).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_attention_weights_change_by_exactly_the_planted_bias(batch: dict[str, torch.Tensor]) -> None:
    """In the first layer queries and keys are stock's, so the weights say what was added to the logits."""
    model = load("eager")
    with torch.no_grad():
        stock = model(**batch, output_attentions=True).attentions[0].double()
        with planted_bias(model, BETA):
            planted = model(**batch, output_attentions=True).attentions[0].double()
    image = batch["input_ids"] == model.config.image_token_id
    for row in range(len(image)):
        keys = image[row].nonzero().flatten()
        added = torch.zeros(image.shape[1], dtype=torch.float64)
        added[keys] = -BETA * ROWS.double() / 2
        for query in range(int(batch["attention_mask"][row].argmax()), image.shape[1]):
            weights = stock[row, :, query]
            if not image[row, query]:
                weights = weights * added.exp()
                weights = weights / weights.sum(-1, keepdim=True)
            assert torch.allclose(planted[row, :, query], weights, atol=1e-6), (row, query)


def test_padded_batches_are_the_quick_decoder_with_a_lowered_mask(model: Any, processor: Any) -> None:
    """An independent way to the same numbers: the training's own decoder with the bias in its mask."""
    atlas = Atlas()
    shown, absent = RENDERED.item.target, RENDERED.item.absent
    questions = PackedQuestions(processor.tokenizer, atlas.names, chained=0, prompts=2)
    image = questions.layout.image
    mask = questions.layout.mask()
    mask[image.stop :, image] -= BETA * ROWS / 2
    vision, embedding = FastVision(model), model.model.language_model.embed_tokens
    canvas = torch.from_numpy(np.stack(list(composites(RENDERED))[:2]))
    ids = questions.template(1)
    last = [questions.write_question(ids[0], number, asked) for number, asked in enumerate((shown, absent))]
    verdict = embedding.weight[questions.yes] - embedding.weight[questions.no]
    with torch.no_grad():
        text = embedding(ids).expand(2, -1, -1)
        tokens = vision(vision.canvas.patches(canvas))
        packed = torch.cat([text[:, : image.start], tokens, text[:, image.stop :]], 1)
        hidden = FastDecoder(model, questions.layout.positions(), mask)(packed)
        expected = [hidden[row, last[row]] @ verdict for row in range(2)]
        with planted_bias(model, BETA):
            found = logits(model, inputs_for(processor, [atlas.names[shown], atlas.names[absent]]))
    margins = found[:, questions.yes] - found[:, questions.no]
    assert torch.allclose(margins, torch.stack(expected), atol=1e-4)


def test_decoding_steps_carry_the_bias(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """generate's second step, on a cache, against one forward over prompt and first token."""
    settings = {"max_new_tokens": 2, "min_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    stock = model.generate(**batch, **settings)
    with planted_bias(model, 4.0):
        made = model.generate(**batch, **settings)
        token = made.sequences[:, -2:-1]
        grown = {name: grow(value, token, name) for name, value in batch.items()}
        whole = logits(model, grown)
    assert torch.allclose(made.logits[1], whole, atol=1e-3)
    assert not torch.allclose(made.logits[0], stock.logits[0], atol=1e-2)
    without = logits(model, {name: grow(value, token, name) for name, value in batch.items()})
    assert not torch.allclose(whole, without, atol=1e-2)


def grow(value: torch.Tensor, token: torch.Tensor, name: str) -> torch.Tensor:
    """Inputs with one more token."""
    if name == "input_ids":
        return torch.cat([value, token], 1)
    if name in ("attention_mask", "mm_token_type_ids"):
        return torch.cat([value, torch.full_like(token, int(name == "attention_mask"))], 1)
    return value


def test_zero_is_stock_and_the_model_is_left_as_it_was(model: Any, batch: dict[str, torch.Tensor]) -> None:
    stock = logits(model, batch)
    with planted_bias(model, 0.0) as plant:
        assert torch.equal(logits(model, batch), stock)
        plant.beta = BETA
        assert not torch.equal(logits(model, batch), stock)
    assert torch.equal(logits(model, batch), stock)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_sizes_add_up_and_the_opposite_undoes(model: Any, batch: dict[str, torch.Tensor]) -> None:
    stock = logits(model, batch)
    with planted_bias(model, BETA):
        once = logits(model, batch)
        with planted_bias(model, -BETA):
            assert torch.allclose(logits(model, batch), stock, atol=1e-5)
    with planted_bias(model, BETA / 2), planted_bias(model, BETA / 2):
        assert torch.allclose(logits(model, batch), once, atol=1e-5)


def test_a_method_works_on_the_image_tokens_all_the_same(model: Any, batch: dict[str, torch.Tensor]) -> None:
    with planted_bias(model, BETA):
        planted = logits(model, batch)
        with agci(model, 0.5) as handle:
            both = logits(model, batch)
            assert handle.injections == 3
    with agci(model, 0.5):
        method = logits(model, batch)
    assert not torch.allclose(both, planted, atol=1e-3)
    assert not torch.allclose(both, method, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uac", "adaptvis"])
def test_a_rival_s_first_pass_meets_the_bias_of_its_own_prompt(
    model: Any, batch: dict[str, torch.Tensor], processor: Any, method: str
) -> None:
    """UAC shows the biased decoder a blank image first; what was asked before must not matter to it."""
    with planted_bias(model, 3.0), agci(model, method=method, strength=1.0):
        fresh = logits(model, batch)
        logits(model, inputs_for(processor, ["dog"]))
        assert torch.equal(logits(model, batch), fresh)
        with planted_bias(model, -3.0):  # undone: the blank image's attention is stock's, too
            undone = logits(model, batch)
    with agci(model, method=method, strength=1.0):
        torch.testing.assert_close(undone, logits(model, batch), atol=1e-4, rtol=0)


def test_windows_are_put_back(model: Any, batch: dict[str, torch.Tensor]) -> None:
    stock, window = logits(model, batch), model.model.visual.window_size
    with vision_windows(model, 56):
        assert not torch.allclose(logits(model, batch), stock, atol=1e-3)
    assert model.model.visual.window_size == window
    assert torch.equal(logits(model, batch), stock)


def test_what_cannot_be_planted_is_a_clear_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="must be a finite number, but is nan"), planted_bias(model, float("nan")):
        pass
    monkeypatch.setattr(model.model.language_model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(InputError, match="uses flash_attention_2: load it with"), planted_bias(model, 1.0):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())
