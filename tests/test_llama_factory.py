"""Fine-tuning with LLaMA-Factory, as a user does it: our recipes of configs/, its own commands, then our probe.

Runs under `make train-test`, which makes LLaMA-Factory's environment and names its Python in AGCI_TRAIN_PYTHON. Each
recipe trains a tiny checkpoint of its family; what is changed on its command line is places, sizes, and float32 for
bfloat16, nothing else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_data import FAMILY

from transformers_agci import LAMBDA_KEY, cli

pytestmark = pytest.mark.train

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "probe_datasets"
RECIPES = [pytest.param(recipe, marks=pytest.mark.xdist_group(recipe)) for recipe in FAMILY]
ONE = pytest.mark.xdist_group("qwen2_5_vl")  # beside that recipe's other tests, which train the same checkpoint
LAM = 0.5
SIZES = {  # one batch of four rows, on the CPU
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "max_steps": 3,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "bf16": "false",
}


@dataclass(frozen=True)
class Trained:
    """What one recipe made of a tiny checkpoint."""

    base: Path
    adapter: Path
    merged: Path
    log: str  # what `llamafactory-cli train` printed

    def losses(self) -> list[float]:
        history = json.loads((self.adapter / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]


class TrainingEnvironment:
    """LLaMA-Factory's Python, as a shell with that environment activated sees it."""

    def __init__(self, python: Path) -> None:
        assert python.is_file(), f"AGCI_TRAIN_PYTHON is {python}, which does not exist: make train-env"
        self.bin = python.parent

    def run(self, program: str, *arguments: object, **variables: str) -> str:
        """Run one of its programs in the repository's root; returns what it printed, fails with it."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(self.bin / program), *map(str, arguments)],
            cwd=ROOT,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""} | variables,
        )
        assert done.returncode == 0, f"{program} {arguments}\n{done.stdout[-5000:]}"
        return done.stdout


@pytest.fixture(scope="session")
def training() -> TrainingEnvironment:
    python = os.environ.get("AGCI_TRAIN_PYTHON")
    if not python:
        pytest.skip("AGCI_TRAIN_PYTHON names no Python with LLaMA-Factory: run `make train-test`")
    return TrainingEnvironment(Path(python))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset_dir: `images` (rows with one image, two, and two side by side) and `texts` (rows without)."""
    from tiny_checkpoints import random_image

    folder = tmp_path_factory.mktemp("data")
    for number in range(6):
        random_image(seed=number).save(folder / f"{number}.png")
    answer = "A red square."  # in every row: two processes take the mean of their batches' means
    write_rows(
        folder,
        "pictures",
        [
            ("<image>What is it?", answer, [0]),
            ("<image>What is in this and <image>in that?", answer, [1, 2]),
            ("<image><image>What do both contain?", answer, [3, 4]),
            ("<image>And this?", answer, [5]),
        ],
    )
    write_rows(
        folder,
        "texts",
        [
            ("Is there a dog?", "Yes.", []),
            ("No text, a longer question?", "No, there is only the given text.", []),
        ],
    )
    ours = json.loads((ROOT / "data" / "dataset_info.json").read_text())["llava_v1_5_instruct_sample_10k"]
    info = {name: ours | {"file_name": f"{name}.json"} for name in ("pictures", "texts")}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def write_rows(folder: Path, name: str, rows: list[tuple[str, str, list[int]]]) -> None:
    (folder / f"{name}.json").write_text(
        json.dumps(
            [
                {
                    "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                    "images": [f"{number}.png" for number in numbers],
                }
                for question, answer, numbers in rows
            ]
        )
    )


Train = Callable[..., str]


@pytest.fixture(scope="session")
def train(training: TrainingEnvironment, data: Path) -> Train:
    """train(recipe, checkpoint, output, ...) -> what `llamafactory-cli train` printed."""

    def run(
        recipe: str, checkpoint: Path, output: Path, variables: dict[str, str] | None = None, **more: object
    ) -> str:
        words = train_words(recipe, checkpoint, output, data, **more)
        return training.run("llamafactory-cli", "train", *words, **(variables or {}))

    return run


def train_words(recipe: str, checkpoint: Path, output: Path, data: Path, **more: object) -> list[str]:
    """The recipe, and what is changed of it."""
    places = {
        "model_name_or_path": checkpoint,
        "output_dir": output,
        "dataset": "pictures",
        "dataset_dir": data,
        "media_dir": data,
        "plot_loss": "false",
    }
    changes = places | SIZES | more
    return [str(ROOT / "configs" / "train_lora" / f"{recipe}.yaml"), *(f"{key}={changes[key]}" for key in changes)]


def merge_words(recipe: str, done: Trained, merged: Path) -> list[str]:
    """The recipe of merging `done`'s adapter into its base, and where to."""
    return [
        str(ROOT / "configs" / "merge_lora" / f"{recipe}.yaml"),
        f"model_name_or_path={done.base}",
        f"adapter_name_or_path={done.adapter}",
        f"export_dir={merged}",
    ]


@pytest.fixture(scope="session")
def trained(
    training: TrainingEnvironment, train: Train, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trained]:
    """recipe -> set-lambda, train and export, once per test process."""
    from tiny_checkpoints import checkpoint

    made: dict[str, Trained] = {}

    def of(recipe: str) -> Trained:
        if recipe not in made:
            folder = tmp_path_factory.mktemp(recipe)
            base = checkpoint(FAMILY[recipe], folder / "base")
            assert cli.main(["set-lambda", str(base), str(LAM)]) == 0
            log = train(recipe, base, folder / "adapter")
            made[recipe] = Trained(base, folder / "adapter", folder / "merged", log)
            training.run("llamafactory-cli", "export", *merge_words(recipe, made[recipe], folder / "merged"))
        return made[recipe]

    return of


def probe_words(checkpoint: Path, answers: Path) -> list[str]:
    """The probe on the shipped sample; no word of lambda."""
    return [
        "probe",
        "--model",
        str(checkpoint),
        "--eval_file",
        str(SAMPLE / "sample_noto_840_840.json"),
        "--img_path",
        str(SAMPLE / "images"),
        "--answer_file",
        str(answers),
    ]


def margins(answers: Path) -> torch.Tensor:
    return torch.tensor([json.loads(line)["margin"] for line in answers.read_text().splitlines()])


@pytest.mark.parametrize("recipe", RECIPES)
def test_merged_checkpoint_carries_the_key_and_is_probed_with_it(
    recipe: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    done = trained(recipe)
    config = json.loads((done.merged / "config.json").read_text())
    assert (config[LAMBDA_KEY], config["model_type"]) == (LAM, FAMILY[recipe])
    assert f"AGCI is on: lambda {LAM}" in done.log

    assert cli.main(probe_words(done.merged, tmp_path / "key.jsonl")) == 0
    manifest = json.loads((tmp_path / "key.manifest.json").read_text())
    assert manifest["settings"]["lambda"] == manifest["notes"]["lambda_in_config"] == LAM
    assert manifest["notes"]["unexpected_weights"] == []
    off = [*probe_words(done.merged, tmp_path / "off.jsonl"), "--global_context_lambda", "0"]
    assert cli.main(off) == 0
    moved = (margins(tmp_path / "key.jsonl") - margins(tmp_path / "off.jsonl")).abs()
    assert len(moved) == 36
    assert moved.max() > 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_language_model_only_is_trained(recipe: str, trained: Callable[[str], Trained]) -> None:
    """The layers that `all` means, in every decoder layer; vision tower and projector stay as they were, to the bit."""
    done = trained(recipe)
    with safe_open(done.adapter / "adapter_model.safetensors", "pt") as adapter:
        layers = {name.split(".lora_")[0].split("language_model.")[1] for name in adapter.keys()}  # noqa: SIM118
    kinds = {layer.split(".")[-1] for layer in layers}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {int(layer.split(".")[1]) for layer in layers} == set(range(4))

    before, after = load_file(done.base / "model.safetensors"), load_file(done.merged / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.removesuffix(".weight").partition("layers.")[2] for name in changed} == {
        layer.partition("layers.")[2] for layer in layers
    }
    assert not any(part in name for name in changed for part in ("vis", "audio", "projector"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_first_step_follows_the_formula(
    recipe: str, trained: Callable[[str], Trained], training: TrainingEnvironment, data: Path
) -> None:
    """What LLaMA-Factory logged, against the loss by hand on its own batch; other means and lambda 0 are told apart."""
    done = trained(recipe)
    path, *changes = train_words(recipe, done.base, done.adapter, data, overwrite_output_dir="true")
    printed = training.run(
        "python", "tests/llama_factory_loss.py", path, "pictures", "texts", *changes, TRANSFORMERS_AGCI="0"
    )
    hand: dict[str, Any] = json.loads(printed.splitlines()[-1])
    logged = done.losses()[0]
    assert (hand["lambda"], hand["pictures"]) == (LAM, [1, 2, 2, 1])
    assert logged == pytest.approx(hand["formula"], abs=2e-5)
    assert abs(logged - hand["stock"]) > 1e-3
    assert abs(logged - hand["mean over the batch"]) > 1e-4
    assert (hand["AGCI"], hand["injections"]) == (pytest.approx(logged, abs=2e-5), sum(hand["pictures"]))
    # A batch of texts has LLaMA-Factory's dummy image, which nothing attends to.
    assert hand["dummy tokens"] > 0 == hand["text images"] == hand["dummy tokens attended"]
    assert hand["text injections"] == 0
    assert hand["text, AGCI"] == hand["text, stock"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks transformers for it
@pytest.mark.parametrize("recipe", RECIPES)
def test_our_own_trainer_and_merger_agree(
    recipe: str, trained: Callable[[str], Trained], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same recipes through agci check-recipe, train-lora and merge-lora: the same first loss, the same merging."""
    done = trained(recipe)
    ours = Trained(done.base, tmp_path / "adapter", tmp_path / "merged", "")
    words = train_words(recipe, ours.base, ours.adapter, data)
    assert cli.main(["check-recipe", *words]) == 0, capsys.readouterr()
    assert cli.main(["train-lora", *words]) == 0, capsys.readouterr().err
    assert ours.losses()[0] == pytest.approx(done.losses()[0], abs=1e-4)
    words = merge_words(recipe, done, ours.merged)
    assert cli.main(["check-recipe", *words]) == 0, capsys.readouterr()
    assert cli.main(["merge-lora", *words]) == 0, capsys.readouterr().err
    theirs, merged = (load_file(folder / "model.safetensors") for folder in (done.merged, ours.merged))
    assert theirs.keys() == merged.keys()
    assert all(torch.allclose(theirs[name], merged[name], atol=1e-6) for name in theirs)


@ONE
def test_text_only_training_is_stock_s(trained: Callable[[str], Trained], train: Train, tmp_path: Path) -> None:
    base = trained("qwen2_5_vl").base
    losses = {}
    for name, variables in (("on", {}), ("off", {"TRANSFORMERS_AGCI": "0"})):
        log = train("qwen2_5_vl", base, tmp_path / name, variables, dataset="texts", per_device_train_batch_size=2)
        assert ("AGCI is on" in log) == (name == "on")
        losses[name] = Trained(base, tmp_path / name, tmp_path, log).losses()
    assert losses["on"] == losses["off"]
    assert len(losses["on"]) == SIZES["max_steps"]


@ONE
def test_control_with_lambda_0(
    trained: Callable[[str], Trained], training: TrainingEnvironment, train: Train, data: Path, tmp_path: Path
) -> None:
    """One override and an output folder of its own: lambda 0 in training, in the merged checkpoint and in the probe."""
    done = trained("qwen2_5_vl")
    control = Trained(tmp_path / "base-lam0", tmp_path / "adapter-lam0", tmp_path / "merged-lam0", "")
    assert cli.main(["set-lambda", str(done.base), "0", "--output", str(control.base)]) == 0
    log = train("qwen2_5_vl", control.base, control.adapter)
    assert "AGCI is on" not in log
    assert abs(control.losses()[0] - done.losses()[0]) > 1e-3
    training.run("llamafactory-cli", "export", *merge_words("qwen2_5_vl", control, control.merged))
    assert json.loads((control.merged / "config.json").read_text())[LAMBDA_KEY] == 0
    assert cli.main(probe_words(control.merged, tmp_path / "answers.jsonl")) == 0
    assert json.loads((tmp_path / "answers.manifest.json").read_text())["settings"]["lambda"] == 0


@ONE
def test_two_processes(trained: Callable[[str], Trained], train: Train, tmp_path: Path) -> None:
    """FORCE_TORCHRUN starts new processes, where only the start-up hook can turn AGCI on; each takes half the batch."""
    done = trained("qwen2_5_vl")
    log = train(
        "qwen2_5_vl",
        done.base,
        tmp_path / "two",
        {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"},
        per_device_train_batch_size=2,
        ddp_backend="gloo",
    )
    assert log.count(f"AGCI is on: lambda {LAM}") == 2
    two = Trained(done.base, tmp_path / "two", tmp_path, log)
    assert two.losses()[0] == pytest.approx(done.losses()[0], abs=2e-5)


@ONE
def test_probe_in_the_training_environment(
    trained: Callable[[str], Trained], training: TrainingEnvironment, tmp_path: Path
) -> None:
    """One environment can do both; other versions of transformers and of the image decoder, the same answers."""
    merged = trained("qwen2_5_vl").merged
    training.run("agci", *probe_words(merged, tmp_path / "there.jsonl"))
    assert cli.main(probe_words(merged, tmp_path / "here.jsonl")) == 0
    there, here = (json.loads((tmp_path / f"{place}.manifest.json").read_text()) for place in ("there", "here"))
    assert there["settings"]["lambda"] == here["settings"]["lambda"] == LAM
    assert there["runs"][0]["packages"]["transformers"] == "5.6.0" != here["runs"][0]["packages"]["transformers"]
    assert torch.allclose(margins(tmp_path / "there.jsonl"), margins(tmp_path / "here.jsonl"), atol=1e-3)


def test_it_is_another_environment(training: TrainingEnvironment) -> None:
    code = "import sys, transformers, llamafactory; print(sys.prefix)"
    assert training.run("python", "-c", code).strip() != sys.prefix
    assert "--nproc-per-node" in training.run("torchrun", "--help")
