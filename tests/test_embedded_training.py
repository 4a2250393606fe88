"""The training of the embedded model: its quick forward is the stock model's, and a few steps of it learn."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.draws import random_stream
from transformers_agci.embedded import training
from transformers_agci.embedded.architecture import fresh_model, train_tokenizer
from transformers_agci.embedded.atlas import Atlas, RenderConfig
from transformers_agci.embedded.checkpoint import processor_for
from transformers_agci.embedded.evaluate import composites, evaluate
from transformers_agci.embedded.fast_forward import FastDecoder, FastVision
from transformers_agci.embedded.probe_set import render_items
from transformers_agci.embedded.training_data import IGNORED, CanvasSampler, Dataset
from transformers_agci.experiments.position.questions import PROMPT

STREAM = ("test", "training")


def dataset(tokenizer: Any, number: int, chained: int, prompts: int) -> Dataset:
    sampler = CanvasSampler(Atlas(), RenderConfig(), random_stream(*STREAM, number), poses=1)
    return Dataset(tokenizer, sampler, chained, prompts)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(Atlas().names)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """Untrained, with weights large enough for differences to show."""
    model = fresh_model(tokenizer, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def stock_margins(model: Any, tokenizer: Any, image: np.ndarray, names: list[str]) -> list[float]:
    """Yes minus No by the stock processor and the stock forward, one question at a time."""
    processor = processor_for(tokenizer)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    margins = []
    for name in names:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT.format(caption=name)}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[Image.fromarray(image)], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        margins.append(float(logits[yes] - logits[no]))
    return margins


def test_quick_answers_are_the_stock_models(model: Any, tokenizer: Any) -> None:
    """Image, prompt, windows, positions, mask and packing at once, through stock processor and forward."""
    atlas = Atlas()
    (rendered,) = render_items(atlas, STREAM, 1)
    quick = evaluate(model, tokenizer, items=1, stream=STREAM)
    names = [atlas.names[rendered.item.target], atlas.names[rendered.item.absent]]
    for k, image in enumerate(composites(rendered)):
        stock = stock_margins(model, tokenizer, image, names)
        assert np.allclose([quick.to_shown[0, k], quick.to_absent[0, k]], stock, atol=1e-4)


def test_packed_questions_do_not_see_each_other(model: Any, tokenizer: Any) -> None:
    """Chained names before and other questions beside it change nothing for the last question."""
    batches = dataset(tokenizer, 0, chained=3, prompts=3)
    batch = batches.next_batch(2)
    layout = batches.questions.layout
    vision = FastVision(model)
    decoder = FastDecoder(model, layout.positions(), layout.mask())
    last = layout.segments[-1].start
    changed = batch.ids.clone()
    changed[:, layout.canvas_length : layout.segments[1].start] += 1  # the chain
    changed[:, layout.segments[2].start : last] += 1  # the other questions
    embedding = model.model.language_model.embed_tokens
    with torch.no_grad():
        tokens = vision(vision.canvas.patches(batch.images))
        outputs = []
        for ids in (batch.ids, changed):
            text = embedding(ids)
            outputs.append(decoder(torch.cat([text[:, : layout.image.start], tokens, text[:, layout.image.stop :]], 1)))
    assert torch.allclose(outputs[0][:, last:], outputs[1][:, last:], atol=1e-5)
    assert not torch.allclose(outputs[0][:, : last - 1], outputs[1][:, : last - 1], atol=1e-3)


def test_labels_are_the_truth_about_the_canvas(tokenizer: Any) -> None:
    atlas = Atlas()
    batches = dataset(tokenizer, 1, chained=4, prompts=2)
    batch = batches.next_batch(8)
    seen = set()
    for row in range(8):
        for place in (batch.answer_labels[row] != IGNORED).nonzero().flatten().tolist():
            segment = max(s.start for s in batches.questions.layout.segments if s.start <= place)
            name = tokenizer.decode(batch.ids[row, segment:place]).split("\n")[0].strip()
            shown = atlas.names.index(name) in batch.shown[row].tolist()
            answer = tokenizer.decode([batch.answer_labels[row, place]])
            assert answer == ("Yes" if shown else "No")
            assert tokenizer.decode([batch.end_labels[row, place + 1]]) == "<|im_end|>"
            seen.add(answer)
    assert seen == {"Yes", "No"}


@pytest.mark.slow
def test_the_same_stream_gives_the_same_batches(tokenizer: Any) -> None:
    first, second, other = (dataset(tokenizer, number, chained=2, prompts=1).next_batch(2) for number in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.images, other.images)


def test_a_short_recipe_keeps_every_stage() -> None:
    assert [stage.steps for stage in training.scaled(None)] == [stage.steps for stage in training.STAGES]
    assert [stage.steps for stage in training.scaled(1)] == [1, 1, 1, 1]
    assert 18 <= sum(stage.steps for stage in training.scaled(20)) <= 22


def test_bad_numbers_are_clear_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train-embedded", "--output", str(tmp_path), "--steps", "0"]) == 2
    assert "--steps must be at least 1, but is 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["train-embedded", "--output", str(tmp_path / "file"), "--steps", "1"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_steps_lower_the_loss(tmp_path: Path) -> None:
    _, losses = training.train(tmp_path, steps=20)
    assert list(losses) == [stage.name for stage in training.STAGES]
    assert losses["words"][-1] < losses["words"][0] / 2
    assert losses["prompt"][-1] < losses["prompt"][0]


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the third stage and started again: the same weights as in one go, and a loadable checkpoint."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = ["--steps", "6", "--items", "1"]
    assert main(["train-embedded", "--output", str(whole), *words]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "initialize_decoder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train-embedded", "--output", str(stopped), *words]) == 130
    assert main(["train-embedded", "--output", str(stopped), *words]) == 0
    weights = [load_file(folder / "model.safetensors") for folder in (whole, stopped)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    processor = AutoProcessor.from_pretrained(whole)
    model = AutoModelForImageTextToText.from_pretrained(whole)
    assert model.dtype == torch.float32
    assert sys.modules[type(processor).__module__].__name__.startswith("transformers.models.qwen2_5_vl")


def test_a_damaged_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    stages, render = training.scaled(4), RenderConfig(noise=training.TRAINING_NOISE)
    way = hashlib.sha256(repr((stages[:1], render, 0)).encode()).hexdigest()[:12]
    stage = tmp_path / "stages" / f"1-{stages[0].name}-{way}.safetensors"
    stage.parent.mkdir()
    for damage in (lambda: stage.write_bytes(b"\x00" * 9), lambda: save_file({"other": torch.ones(1)}, stage)):
        damage()
        assert main(["train-embedded", "--output", str(tmp_path), "--steps", "4", "--items", "1"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"agci: {stage} cannot be taken up (") and said.endswith("stage is trained again.\n")
