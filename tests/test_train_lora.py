"""`agci train-lora`: the first step by hand, what is learnt, and going on after a kill."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_data
import training_data as td
import transformers
from decoder_inputs import expected_embeds
from safetensors.torch import load_file
from tiny_checkpoints import FAMILIES
from training_data import LAM, Made, losses, train

from transformers_agci.method.handle import current_handle
from transformers_agci.training import run as training_run
from transformers_agci.training.batches import Collator, Examples, wants_image_marks
from transformers_agci.training.checks import CheckReport
from transformers_agci.training.encoding import IGNORED, TEMPLATES, families_of, kept_lengths
from transformers_agci.training.prepare import inputs_of, load_model, validate_training
from transformers_agci.training.recipe import parse_recipe

# peft and Trainer themselves still say gradient_checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

data = training_data.data  # fixture
keyed = training_data.keyed  # fixture


def loss_by_hand(model: Any, batch: dict[str, torch.Tensor], tokens: list[list[int]], lam: float) -> float:
    """Cross-entropy over the labels, the decoder called with embeddings that the formula changed; no hook of ours.

    `tokens` are the image tokens of every image, row by row.
    """
    images = []
    for row, counts in enumerate(tokens):
        places = (batch["input_ids"][row] == model.config.image_token_id).nonzero()[:, 0].tolist()
        assert len(places) == sum(counts)
        for count in counts:
            images.append((row, places[0], places[0] + count))
            assert places[:count] == list(range(places[0], places[0] + count))
            places = places[count:]
    decoder = model.model.language_model
    stock = decoder.forward

    def changed(*args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> Any:
        new = expected_embeds(inputs_embeds, images, lam)
        return stock(*args, inputs_embeds=new.to(inputs_embeds.dtype), **kwargs)

    decoder.forward = changed
    try:
        with torch.no_grad():
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    finally:
        del decoder.forward
    labels = batch["labels"][:, 1:]  # a token is foretold by the one before it
    chosen = logits[:, :-1].double().log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return float(-chosen[labels != IGNORED].mean())


QUICK = ("qwen2_5_vl", "llava")


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)
def test_first_step_follows_the_formula(family: str, keyed: Made, data: Path, tmp_path: Path) -> None:
    """One batch of all eight rows: images of several sizes, two in a row, text alone."""
    raw = td.training_recipe(family, keyed(family), data, tmp_path / "on", per_device_train_batch_size=8, max_steps=1)
    assert train(tmp_path / "r.yaml", raw) == 0
    off = raw | {"model_name_or_path": str(keyed(family, 0.0)), "output_dir": str(tmp_path / "off")}
    assert train(tmp_path / "r.yaml", off) == 0

    recipe = parse_recipe(raw | {"model_name_or_path": str(keyed(family, None))}, "recipe")
    training = validate_training(recipe, CheckReport())
    loaded = load_model(recipe)
    assert current_handle(loaded.model) is None
    encoder, inputs = inputs_of(recipe, training, loaded)
    examples = Examples(training.data.conversations, encoder, inputs, training.data.root)
    collate = Collator(
        inputs,
        loaded.processor.tokenizer.pad_token_id,
        loaded.model.config.image_token_id,
        torch.float32,
        wants_image_marks(loaded.model),
    )
    rows = [examples[number] for number in range(len(examples))]
    tokens = [[inputs.tokens_within(image.size) for image in row.images] for row in rows]
    loaded.model.train()
    by_hand = {lam: loss_by_hand(loaded.model, collate(rows), tokens, lam) for lam in (0.0, LAM)}
    assert losses(tmp_path / "on")[0] == pytest.approx(by_hand[LAM], abs=6e-5)  # transformers 4 rounds to 1e-4
    assert losses(tmp_path / "off")[0] == pytest.approx(by_hand[0.0], abs=6e-5)
    assert abs(by_hand[LAM] - by_hand[0.0]) > 1e-3
    settings = json.loads((tmp_path / "on" / "training.manifest.json").read_text())["settings"]
    assert (settings["lambda"], settings["model"]["family"]) == (LAM, family)


def test_only_answers_are_learnt(keyed: Made, data: Path, tmp_path: Path) -> None:
    """Every answer of a conversation, its end token, and nothing else."""
    recipe = parse_recipe(td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path), "recipe")
    training = validate_training(recipe, CheckReport())
    loaded = load_model(recipe, weights=False)
    encoder, inputs = inputs_of(recipe, training, loaded)
    row = Examples(training.data.conversations, encoder, inputs, training.data.root)[2]
    text = loaded.processor.tokenizer.decode([i for i in row.encoded.labels if i != IGNORED])
    assert text == "No, the square is not red.<|im_end|>\nYes<|im_end|>\n"
    length = len(row.encoded.ids)
    for cutoff, cut in ((length, False), (length - 1, True)):
        shorter = Examples(training.data.conversations, replace(encoder, cutoff=cutoff), inputs, training.data.root)[2]
        assert shorter.encoded.cut is cut
    assert [i for i, label in zip(row.encoded.ids, row.encoded.labels, strict=True) if label != IGNORED] == [
        label for label in row.encoded.labels if label != IGNORED
    ]


def test_qwen3_vl_learns_an_empty_thought(keyed: Made, data: Path, tmp_path: Path) -> None:
    """With enable_thinking false it belongs to the prompt, with the template _nothink there is none."""
    made = {}
    for name, changes in {"on": {}, "off": {"enable_thinking": False}, "no": {"template": "qwen3_vl_nothink"}}.items():
        raw = td.training_recipe("qwen3_vl", keyed("qwen3_vl"), data, tmp_path, **changes)
        recipe = parse_recipe(raw, "recipe")
        training = validate_training(recipe, CheckReport())
        loaded = load_model(recipe, weights=False)
        encoder, _ = inputs_of(recipe, training, loaded)
        encoded = encoder.encode(training.data.conversations[1], [])
        decode = loaded.processor.tokenizer.decode
        made[name] = decode(encoded.ids), decode([i for i in encoded.labels if i != IGNORED])
    answer, thought = "A colour of an image.<|im_end|>\n", "<think>\n\n</think>\n\n"
    assert made["on"][1] == thought + answer
    assert made["off"][1] == made["no"][1] == answer
    assert made["on"][0] == made["off"][0] == made["no"][0].replace(answer, thought + answer)


@pytest.mark.parametrize(
    ("prompt", "answer", "room", "kept"),
    [(3, 4, 10, (3, 4)), (20, 4, 10, (6, 4)), (4, 20, 10, (4, 6)), (20, 20, 10, (5, 5)), (30, 10, 8, (6, 2))],
)
def test_cutting(prompt: int, answer: int, room: int, kept: tuple[int, int]) -> None:
    assert kept_lengths(prompt, answer, room) == kept


def test_each_family_has_a_template() -> None:
    assert {family.model_type for name in TEMPLATES for family in families_of(name)} >= set(FAMILIES)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.slow
def test_a_run_killed_behind_its_last_step_makes_no_further_one(
    keyed: Made, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = td.training_recipe("llava", keyed("llava"), data, tmp_path / "whole", max_steps=3, save_steps=1)
    assert train(tmp_path / "r.yaml", raw) == 0
    again = raw | {"output_dir": str(tmp_path / "killed")}
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any) -> None:
            raise Killed

        patch.setattr(transformers.Trainer, "save_state", die)  # the last thing but the manifest
        with pytest.raises(Killed):
            train(tmp_path / "r.yaml", again)
    assert (tmp_path / "killed" / "checkpoint-3").is_dir()
    assert train(tmp_path / "r.yaml", again) == 0
    whole, killed = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoint-4").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_adapter(
    keyed: Made, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout and a schedule, so that random numbers and learning rate have to be taken up, too."""
    raw = td.training_recipe(
        "qwen2_5_vl",
        keyed("qwen2_5_vl"),
        data,
        tmp_path / "whole",
        lora_dropout=0.1,
        max_steps=6,
        lr_scheduler_type="cosine",
        save_steps=2,
    )
    assert train(tmp_path / "r.yaml", raw) == 0
    again = raw | {"output_dir": str(tmp_path / "killed")}
    with monkeypatch.context() as patch:

        def die(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise Killed

        patch.setattr(training_run.Steps, "on_step_end", die)
        with pytest.raises(Killed):
            train(tmp_path / "r.yaml", again)
    torn = tmp_path / "killed" / "checkpoint-5"  # as a kill in the middle of saving leaves it
    shutil.copytree(tmp_path / "killed" / "checkpoint-4", torn)
    (torn / "trainer_state.json").write_text('{"global_')
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()

    capsys.readouterr()
    assert train(tmp_path / "r.yaml", again) == 0
    assert "Going on from" in (said := capsys.readouterr().out)
    assert "checkpoint-4" in said
    whole, killed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    runs = json.loads((tmp_path / "killed" / "training.manifest.json").read_text())
    assert runs["finished"] is True
    assert [run["from_checkpoint"] for run in runs["runs"]] == ["checkpoint-4"]

    before = (tmp_path / "killed" / "adapter_model.safetensors").stat().st_mtime_ns
    assert train(tmp_path / "r.yaml", again) == 0
    assert "finished already" in capsys.readouterr().out
    assert (tmp_path / "killed" / "adapter_model.safetensors").stat().st_mtime_ns == before

    assert train(tmp_path / "r.yaml", again, "learning_rate=0.01") == 2
    assert "recipe.learning_rate is 0.001 there and 0.01 now" in capsys.readouterr().err
    assert train(tmp_path / "r.yaml", again, "learning_rate=0.01", "overwrite_output_dir=true", "max_steps=1") == 0
    assert losses(tmp_path / "killed")[0] == losses(tmp_path / "whole")[0]


def test_switched_off_by_the_environment(
    keyed: Made, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest tells the lambda that was active, not the one in config.json."""
    monkeypatch.setattr(training_run, "current_handle", lambda model: None)
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "out", max_steps=1)
    assert train(tmp_path / "r.yaml", raw) == 0
    manifest = json.loads((tmp_path / "out" / "training.manifest.json").read_text())
    assert manifest["settings"]["lambda"] == 0
    assert manifest["notes"]["lambda_source"] == "TRANSFORMERS_AGCI=0 (config.json says 0.5)"
