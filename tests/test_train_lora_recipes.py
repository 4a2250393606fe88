"""The shipped recipes of `agci train-lora`, and training in two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import training_data
import training_data as td
from training_data import LAM, Made, losses, train

from transformers_agci.cli import main
from transformers_agci.training.encoding import TEMPLATES, families_of
from transformers_agci.training.recipe import read_recipe
from transformers_agci.training.recipe_keys import MergeRecipe

# peft and Trainer themselves still say gradient_checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

data = training_data.data  # fixture
keyed = training_data.keyed  # fixture


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*/*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_taken(path: Path) -> None:
    """Every key has a meaning here or is named as ignored; templates and layers are those of the family."""
    recipe = read_recipe(path)
    assert recipe.unsupported == ()
    assert isinstance(recipe, MergeRecipe) == (path.parent.name == "merge_lora")
    assert recipe.template in TEMPLATES


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
