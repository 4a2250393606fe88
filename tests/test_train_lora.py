"""agci train-lora: the first step by hand, resuming, and what a user is told about bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_data as td
import transformers
from decoder_inputs import expected_embeds
from safetensors.torch import load_file
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES
from transformers_agci.cli import main
from transformers_agci.method.handle import current_handle
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.training import run as training_run
from transformers_agci.training.batches import Bounds, Collator, Examples, wants_image_marks
from transformers_agci.training.checks import CheckReport
from transformers_agci.training.encoding import IGNORED, TEMPLATES, families_of, kept_lengths
from transformers_agci.training.prepare import inputs_of, load_model, validate_training
from transformers_agci.training.recipe import parse_recipe, read_recipe
from transformers_agci.training.recipe_keys import MergeRecipe

# peft and Trainer themselves still say gradient_checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

LAM = 0.5
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return td.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def keyed(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """family, lambda -> a copy of the tiny checkpoint with the key in its config.json (None: without)."""
    made: dict[tuple[str, float | None], Path] = {}

    def folder(family: str, lam: float | None = LAM) -> Path:
        if (family, lam) not in made:
            copy = tmp_path_factory.mktemp("keyed") / family
            shutil.copytree(tiny_checkpoint(family), copy)
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps(config | ({} if lam is None else {LAMBDA_KEY: lam})))
            made[family, lam] = copy
        return made[family, lam]

    return folder


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def train(path: Path, recipe: dict[str, Any], *changes: str) -> int:
    return main(["train-lora", str(td.write_recipe(path, recipe)), *changes])


# --- the first step ------------------------------------------------------------------------------------------------


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


# --- going on ------------------------------------------------------------------------------------------------------


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


# --- bad input -----------------------------------------------------------------------------------------------------


def one(messages: list[dict[str, str]], *images: str) -> list[dict[str, Any]]:
    return [td.rows()[1], {"messages": messages, "images": list(images)}]


BAD_ROWS = {
    "image missing": (one(td.turns("<image>?", "Yes"), "gone.png"), "tiny.jsonl:2, images[0]", "does not exist"),
    "image broken": (one(td.turns("<image>?", "Yes"), "broken.png"), "tiny.jsonl:2, images[0]", "not an image"),
    "image outside": (one(td.turns("<image>?", "Yes"), "../x.png"), "tiny.jsonl:2, images[0]", "without '..'"),
    "marks": (one(td.turns("<image><image>?", "Yes"), "a.png"), "tiny.jsonl:2", "2 marks <image>"),
    "roles": (one([{"role": "human", "content": "Hi"}]), "tiny.jsonl:2, messages[0]", "it must be 'user' here"),
    "no answer": (one(td.turns("Hi")), "tiny.jsonl:2", "must end with a turn of 'assistant'"),
    "no messages": ([{"text": "x"}], "tiny.jsonl:1", 'the field "messages" is missing'),
    "cut image": (
        one(td.turns("word " * 40 + "<image>", "Yes " * 40), "a.png"),
        "tiny.jsonl:2",
        "cutoff_len 48 cuts off image tokens",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_before_the_first_step(
    case: str, keyed: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, where, what = BAD_ROWS[case]
    data = td.write_data(tmp_path / "data", made)
    (data / "pictures" / "broken.png").write_text("no image")
    monkeypatch.setattr(training_run, "make_trainer", lambda *args: pytest.fail("a step was about to be made"))
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "out", cutoff_len=48)
    assert train(tmp_path / "r.yaml", raw) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"agci: {where}")
    assert what in said
    assert not (tmp_path / "out").exists()

    assert main(["check-recipe", str(tmp_path / "r.yaml")]) == 2  # what a user of llamafactory-cli is told
    assert what in capsys.readouterr().out


BAD_RECIPES = {
    "unknown key": ({"learning_rat": 1}, "does not know the key learning_rat; did you mean learning_rate?"),
    "fixed key": ({"packing": True}, "packing is true, but agci train-lora takes only false"),
    "not a number": ({"learning_rate": "quick"}, "learning_rate must be a number, but is quick"),
    "no number at all": ({"learning_rate": float("nan")}, "learning_rate must be a number, but is nan"),
    "no end": ({"seed": float("inf")}, "seed must be a whole number, but is inf"),
    "out of range": ({"lora_rank": 0}, "lora_rank must be at least 1"),
    "above the range": ({"lora_dropout": 1.5}, "lora_dropout must be at most 1"),
    "tracker that is not there": ({"report_to": "nobody"}, "report_to is nobody, but installed here are only: none"),
    "no data set": ({"dataset": "tinny"}, "Did you mean: tiny? Available: tiny."),
    "no dataset_dir": ({"dataset_dir": "nowhere"}, "There is no nowhere/dataset_info.json"),
    "no media_dir": ({"media_dir": "nowhere"}, "There is no folder nowhere"),
    "no model": ({"model_name_or_path": "./nowhere"}, "There is no model folder ./nowhere"),
    "template of another family": ({"template": "llava"}, "take qwen2_vl"),
    "unknown template": ({"template": "qwen2_vll"}, "did you mean qwen2_vl?"),
    "no such layer": ({"lora_target": "q_prj"}, "has no linear layer 'q_prj'; it has: down_proj"),
    "schedule": ({"lr_scheduler_type": "cosinus"}, "transformers refuses these training settings"),
    "bounds": ({"image_min_pixels": 10**6}, "image_min_pixels (1000000) must not be larger"),
    "merging": ({"export_dir": "x"}, "use agci merge-lora"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_are_one_sentence(
    case: str, keyed: Made, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, what = BAD_RECIPES[case]
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "out", **changes)
    assert train(tmp_path / "r.yaml", raw) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("agci: ")
    assert what in said


def test_a_run_has_its_name_in_the_tracker(keyed: Made, data: Path, tmp_path: Path) -> None:
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "out", run_name="mine")
    recipe = parse_recipe(raw, "r.yaml")
    assert training_run.training_arguments(recipe).run_name == "mine" and "run_name" not in str(recipe.ignored)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_bound_takes_a_side_away(family: str) -> None:
    further = SUPPORTED_FAMILIES[family].training.further_bounds
    for size in ((600_000, 1), (1, 600_000), (400, 24)):
        assert all(min(step) >= 1 for step in Bounds(max_pixels=1, min_pixels=1).steps(size, further))
        assert all(min(step) >= 1 for step in Bounds().steps(size, further))


def test_one_training_at_a_time(keyed: Made, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "saves" / "out")
    (tmp_path / "saves").mkdir()
    with exclusive_lock(tmp_path / "saves" / "out", "testing"):
        assert train(tmp_path / "r.yaml", raw) == 2
    assert "Another program is training into" in capsys.readouterr().err
    assert not (tmp_path / "saves" / "out").exists()


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, what in (
        (None, "There is no recipe"),
        ("a: [", "is not YAML"),
        ("- a", "must hold lines of 'key: value'"),
        ("seed: 1\nseed: 2", "the key seed occurs twice"),
        ("seed: 1", "model_name_or_path is missing"),
    ):
        path = tmp_path / "r.yaml"
        if text is not None:
            path.write_text(text)
        assert main(["train-lora", str(path)]) == 2
        assert what in capsys.readouterr().err
    assert main(["train-lora", str(path), "word"]) == 2
    assert "write key=value" in capsys.readouterr().err


def test_gemma3n_takes_named_layers_only(
    keyed: Made, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = td.training_recipe("gemma3n", keyed("gemma3n"), data, tmp_path / "out", lora_target="all")
    assert train(tmp_path / "r.yaml", raw) == 2
    assert "give lora_target: q_proj,k_proj,v_proj,o_proj" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(28, "No space left on device"), "cannot be written ([Errno 28] No space left on device)"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing data/3"), "goes on from the last checkpoint"),
        (RuntimeError("basic_ios::clear: iostream error"), "goes on from the last checkpoint"),
        (ImportError("You need to install `bitsandbytes`"), "install it or give another optim"),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower per_device_train_batch_size"),
    ],
)
def test_errors_of_a_running_training(
    error: Exception,
    what: str,
    keyed: Made,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", fail)
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "out")
    assert train(tmp_path / "r.yaml", raw) == 2
    assert what in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((tmp_path / "out" / "training.manifest.json").read_text())["finished"] is False


def test_another_folder_is_not_overwritten(
    keyed: Made, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("all of it")
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, output)
    for changes, what in (
        ((), "not a training of ours (thesis.txt)"),
        (("overwrite_output_dir=true",), "neither an adapter nor checkpoints"),
    ):
        assert train(tmp_path / "r.yaml", raw, *changes) == 2
        assert what in capsys.readouterr().err
    assert (output / "thesis.txt").read_text() == "all of it"


def test_check_recipe_of_a_good_recipe(
    keyed: Made, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl", None), data, tmp_path / "out", deepspeed="ds.json")
    assert main(["check-recipe", str(td.write_recipe(tmp_path / "r.yaml", raw))]) == 0
    said = capsys.readouterr().out
    assert "8 rows, 5 images; 0 rows are cut" in said
    assert f"has no {LAMBDA_KEY}: AGCI is off in this training" in said
    assert "only LLaMA-Factory can tell: r.yaml: deepspeed is ds.json" in said
    assert not (tmp_path / "out").exists()
    assert main(["check-recipe", str(tmp_path / "r.yaml"), "lora_target=q_porj"]) == 2
    assert "the language model has no linear layer 'q_porj'; it has: down_proj" in capsys.readouterr().out


def test_large_images_are_reduced_as_the_recipe_says(keyed: Made, tmp_path: Path) -> None:
    data = td.write_data(tmp_path / "data", [td.rows()[0]])
    random_image(seed=1, width=600, height=300).save(data / "pictures" / "a.png")
    raw = td.training_recipe("internvl", keyed("internvl"), data, tmp_path / "out", image_max_pixels=20_000)
    recipe = parse_recipe(raw, "recipe")
    training = validate_training(recipe, CheckReport())
    encoder, inputs = inputs_of(recipe, training, load_model(recipe, weights=False))
    row = Examples(training.data.conversations, encoder, inputs, training.data.root)[0]
    assert [image.size for image in row.images] == [(200, 100)]
    assert inputs.tokens((600, 300)) == inputs.tokens_within((200, 100))


# --- the shipped recipes, and several processes --------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*/*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_taken(path: Path) -> None:
    """Every key has a meaning here or is named as ignored; templates and layers are those of the family."""
    recipe = read_recipe(path)
    assert recipe.unsupported == ()
    assert isinstance(recipe, MergeRecipe) == (path.parent.name == "merge_lora")
    assert recipe.template in TEMPLATES


@pytest.mark.slow
def test_an_image_that_goes_missing_on_the_way(
    keyed: Made, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a worker process: its sentence, without its traceback."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    fit = training_run.make_trainer

    def late(*args: Any) -> Any:
        (folder / "pictures" / "a.png").unlink()
        return fit(*args)

    monkeypatch.setattr(training_run, "make_trainer", late)
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), folder, tmp_path / "out", dataloader_num_workers=1)
    assert train(tmp_path / "r.yaml", raw) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("agci: tiny.jsonl:")
    assert "a.png does not exist" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("configs/train_lora/*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_recipes_train(path: Path, keyed: Made, data: Path, tmp_path: Path) -> None:
    """In bfloat16, with worker processes; what is changed is places and sizes."""
    family = families_of(read_recipe(path).template)[0].model_type
    changes = {
        "model_name_or_path": keyed(family),
        "output_dir": tmp_path / "out",
        "dataset": "tiny",
        "dataset_dir": data,
        "media_dir": data / "pictures",
        "max_steps": 1,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
        "logging_steps": 1,
        "use_cpu": "true",
    }
    assert main(["train-lora", str(path), *(f"{key}={value}" for key, value in changes.items())]) == 0
    assert len(losses(tmp_path / "out")) == 1


@pytest.mark.slow
def test_two_processes(keyed: Made, data: Path, tmp_path: Path) -> None:
    """torchrun shares the rows out: one row each is the same batch as two rows in one process."""
    raw = td.training_recipe("qwen2_5_vl", keyed("qwen2_5_vl"), data, tmp_path / "one", use_cpu=True)
    assert train(tmp_path / "r.yaml", raw) == 0
    two = raw | {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    recipe = td.write_recipe(tmp_path / "two.yaml", two)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "transformers_agci.cli",
        "train-lora",
        str(recipe),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("AGCI is on in this training.") == 1  # one process speaks for both
    assert len(losses(tmp_path / "two")) == 4
    settings = json.loads((tmp_path / "two" / "training.manifest.json").read_text())["settings"]
    assert (settings["processes"], settings["lambda"]) == (2, LAM)
    # Each process takes the mean over its own row's tokens: equal only where the rows have equally many, so only near.
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=0.2)
