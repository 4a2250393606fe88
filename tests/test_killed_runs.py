"""Runs that make folders, killed anywhere: what is there afterwards is right or recognisably unfinished."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import original_llava
import pytest
import torch
import training_data as td
from kill_points import killed_after, killed_at

from transformers_agci.cli import main
from transformers_agci.storage.folder import same_bytes, same_files
from transformers_agci.training import outputs

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SETTINGS = {"lambda": 0.5, "recipe": {"seed": 1}}
# What tells when and where a folder was made.
MANIFESTS = ("merging.manifest.json", "conversion_manifest.json", outputs.MANIFEST)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # more of them do not survive a fork


# --- train-lora's folder, without a training -----------------------------------------------------------------------


def test_a_training_killed_while_it_begins_can_be_run_again(tmp_path: Path) -> None:
    """At each of its changes to the disk, between writing and renaming the manifest among them."""
    points = 0
    while True:
        folder = tmp_path / str(points)

        def begin(folder: Path = folder) -> int:
            with outputs.held(folder):
                return outputs.open_output(folder, SETTINGS, {}, overwrite=False)

        killed = killed_at(points, begin)
        assert begin() == 0, f"killed at change {points}"
        assert [path.name for path in folder.iterdir()] == [outputs.MANIFEST], f"killed at change {points}"
        if not killed:
            break
        points += 1
    assert points >= 5  # lock, folder, manifest, its name, lock


def checkpoint(folder: Path, step: int) -> Path:
    from safetensors.torch import save_file

    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    save_file({"a": torch.ones(4, 4)}, made / outputs.ADAPTER_WEIGHTS)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(1000)}, made / name)
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 10}))
    return made


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "removed": lambda data: None,
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) * 2 // 3],
}


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_makes_room_for_an_older_one(name: str, damage: str, tmp_path: Path) -> None:
    older, last = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    said: list[str] = []
    assert outputs.last_checkpoint(tmp_path, said.append) == (last, True)
    assert not said
    data = DAMAGE[damage]((last / name).read_bytes())
    (last / name).unlink()
    if data is not None:
        (last / name).write_bytes(data)
    if (name, damage) == ("rng_state.pth", "removed"):  # Trainer goes on without it, and says so
        assert outputs.last_checkpoint(tmp_path, said.append) == (last, True)
        return
    assert outputs.last_checkpoint(tmp_path, said.append) == (older, False)
    assert len(said) == 1
    assert str(last) in said[0]
    assert name in said[0]
    assert not last.exists()


def test_a_flipped_bit_in_the_optimizer_is_seen(tmp_path: Path) -> None:
    older, last = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    data = bytearray((last / "optimizer.pt").read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 9) + 20] ^= 1  # one of the ones
    (last / "optimizer.pt").write_bytes(data)
    said: list[str] = []
    assert outputs.last_checkpoint(tmp_path, said.append) == (older, False)
    assert "optimizer.pt holds other bytes than were written" in said[0]


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"global_step": 3, "max_steps": null}'])
def test_a_state_that_does_not_count_steps_is_damaged(content: str, tmp_path: Path) -> None:
    older, last = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (last / "trainer_state.json").write_text(content)
    said: list[str] = []
    assert outputs.last_checkpoint(tmp_path, said.append) == (older, False)
    assert "does not say how many steps" in said[0]


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", "{}", '{"settings": [], "notes": {}, "runs": [], "finished": false}', "[" * 10**5]
)
def test_a_damaged_training_manifest_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / outputs.MANIFEST).write_text(content)
    with pytest.raises(outputs.InputError, match="give overwrite_output_dir=true to start over"):
        outputs.open_output(tmp_path, SETTINGS, {}, overwrite=False)


def test_a_finished_training_without_its_adapter_is_not_finished(tmp_path: Path) -> None:
    assert not outputs.open_output(tmp_path, SETTINGS, {}, overwrite=False)
    shutil.copy(checkpoint(tmp_path, 1) / outputs.ADAPTER_WEIGHTS, tmp_path)
    outputs.add_run(tmp_path, {"steps": 1}, finished=True)
    assert outputs.open_output(tmp_path, SETTINGS, {}, overwrite=False)
    (tmp_path / outputs.ADAPTER_WEIGHTS).unlink()
    assert not outputs.open_output(tmp_path, SETTINGS, {}, overwrite=False)
    assert json.loads((tmp_path / outputs.MANIFEST).read_text())["runs"] == [{"steps": 1}]


# --- whole commands, killed at random moments ----------------------------------------------------------------------


def equal_but_for_manifests(first: Path, second: Path) -> bool:
    names = [{file.name for file in folder.iterdir() if file.is_file()} for folder in (first, second)]
    return names[0] == names[1] and all(
        same_bytes(first / name, second / name) for name in names[0] if name not in MANIFESTS
    )


def kill_often(
    command: Callable[[Path], list[str]], whole: Path, place: Path, kills: int, is_right: Callable[[Path, Path], bool]
) -> None:
    """Kill `command` at random moments; after each kill nothing wrong is there, and its rerun makes the same bytes."""
    moments = random.Random(15)
    assert main(command(whole)) == 0  # also warms everything up
    started = time.monotonic()
    assert not killed_after(600, lambda: main(command(place / "timed")))
    duration = time.monotonic() - started
    assert is_right(place / "timed", whole)
    landed = 0
    for number in range(6 * kills):  # on a busy machine many a kill comes too late
        if number >= kills and landed >= kills // 2:
            break
        target = place / str(number)
        for _ in range(2):  # the second time into what the first kill left
            landed += killed_after(moments.uniform(0, duration), lambda target=target: main(command(target)))
            assert not target.exists() or is_right(target, whole), number
        assert main(command(target)) == 0
        assert is_right(target, whole), number
        assert main(command(target)) == 0
        assert not list(place.glob(f".{number}.*")), number
    assert landed >= kills // 2


@pytest.mark.slow
def test_set_lambda_killed_at_random_moments(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint("llava"), source)
    assert main(["set-lambda", str(source), "0.5"]) == 0

    def command(target: Path) -> list[str]:
        return ["set-lambda", str(source), "0", "--output", str(target)]

    (tmp_path / "place").mkdir()
    kill_often(command, tmp_path / "whole", tmp_path / "place", 40, same_files)


@pytest.mark.slow
def test_merge_lora_killed_at_random_moments(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    base, data = tiny_checkpoint("llava"), td.write_data(tmp_path / "data")
    raw = td.training_recipe("llava", base, data, tmp_path / "adapter", max_steps=1, learning_rate=0.01)
    assert main(["train-lora", str(td.write_recipe(tmp_path / "train.yaml", raw))]) == 0
    recipe = {"model_name_or_path": str(base), "adapter_name_or_path": str(tmp_path / "adapter"), "export_dir": "x"}
    path = td.write_recipe(tmp_path / "merge.yaml", recipe)

    def command(target: Path) -> list[str]:
        return ["merge-lora", str(path), f"export_dir={target}"]

    (tmp_path / "place").mkdir()
    kill_often(command, tmp_path / "whole", tmp_path / "place", 12, equal_but_for_manifests)


@pytest.mark.slow
def test_convert_llava_killed_at_random_moments(tmp_path: Path) -> None:
    source = original_llava.write_original("llava", original_llava.reference_model("llava"), tmp_path / "original")

    def command(target: Path) -> list[str]:
        return ["convert-llava", str(source), str(target)]

    (tmp_path / "place").mkdir()
    kill_often(command, tmp_path / "whole", tmp_path / "place", 8, equal_but_for_manifests)


@pytest.mark.slow
def test_train_lora_killed_at_random_moments(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """In a process of its own: where torch.compile ran before, autograd does not work in a fork."""
    program = "import sys, pathlib, test_killed_runs as t; t.kill_training(*map(pathlib.Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_checkpoint("llava")), str(tmp_path)],
        cwd=Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def kill_training(checkpoint: Path, folder: Path) -> None:
    """The adapter's folder is there from the beginning; its manifest says whether it is finished."""
    data = td.write_data(folder / "data")
    steps = {"max_steps": 6, "save_steps": 1, "learning_rate": 0.01}
    raw = td.training_recipe("llava", checkpoint, data, folder / "x", **steps)
    path = td.write_recipe(folder / "train.yaml", raw)

    def command(target: Path) -> list[str]:
        return ["train-lora", str(path), f"output_dir={target}"]

    def is_right(target: Path, whole: Path) -> bool:
        if not (outputs.read_manifest(target) or {}).get("finished"):
            return True  # and says so; that the last run finishes is asserted below
        return same_bytes(target / outputs.ADAPTER_WEIGHTS, whole / outputs.ADAPTER_WEIGHTS)

    (folder / "place").mkdir()
    kill_often(command, folder / "whole", folder / "place", 6, is_right)
    for number in range(6):
        assert (outputs.read_manifest(folder / "place" / str(number)) or {})["finished"]
        assert same_bytes(*(folder / name / outputs.ADAPTER_WEIGHTS for name in ("whole", f"place/{number}")))
