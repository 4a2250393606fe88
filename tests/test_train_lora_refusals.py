"""`agci train-lora` on bad rows, recipes and files, and errors of a running training: one sentence each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import training_data
import training_data as td
from tiny_checkpoints import FAMILIES, random_image
from training_data import Made, one, train

from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES
from transformers_agci.cli import main
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.training import run as training_run
from transformers_agci.training.batches import Bounds, Examples
from transformers_agci.training.checks import CheckReport
from transformers_agci.training.prepare import inputs_of, load_model, validate_training
from transformers_agci.training.recipe import parse_recipe

# peft and Trainer themselves still say gradient_checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

data = training_data.data  # fixture
keyed = training_data.keyed  # fixture

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
