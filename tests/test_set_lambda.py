"""agci set-lambda, agci families and agci self-check as commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kill_points import killed_at

from transformers_agci import LAMBDA_KEY
from transformers_agci.cli import main
from transformers_agci.conversion import set_lambda
from transformers_agci.storage.folder import same_files
from transformers_agci.storage.lock import exclusive_lock


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": {"x": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tmp_path


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def run(*words: object) -> int:
    return main(["set-lambda", *map(str, words)])


def test_writes_shows_and_keeps_what_was(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").chmod(0o640)
    assert run(checkpoint, "0.5") == 0
    assert f"{LAMBDA_KEY}: absent -> 0.5" in capsys.readouterr().out
    assert config_of(checkpoint) == json.loads(before) | {LAMBDA_KEY: 0.5}
    assert (checkpoint / "config.json.bak").read_text() == before
    assert (checkpoint / "config.json").stat().st_mode & 0o777 == 0o640
    added = set((checkpoint / "config.json").read_text().splitlines()) - set(before.splitlines())
    assert len(added) <= 2  # the key, and the comma before it
    assert run(checkpoint, "0.25") == 0
    assert f"{LAMBDA_KEY}: 0.5 -> 0.25" in capsys.readouterr().out
    assert json.loads((checkpoint / "config.json.bak").read_text())[LAMBDA_KEY] == 0.5
    assert run(checkpoint / "config.json", "--remove") == 0
    assert (checkpoint / "config.json").read_text() == before
    assert {file.name for file in checkpoint.iterdir()} == {"config.json", "config.json.bak"}


def test_equal_value_changes_nothing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(checkpoint, "0.5")
    time = (checkpoint / "config.json").stat().st_mtime_ns
    assert run(checkpoint, "0.5") == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert (checkpoint / "config.json").stat().st_mtime_ns == time


def test_half_a_surrogate_pair_stays(checkpoint: Path) -> None:
    config = config_of(checkpoint) | {"made_by": "caf\u00e9 \ud800"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert run(checkpoint, "0.5") == 0
    assert config_of(checkpoint) == config | {LAMBDA_KEY: 0.5}


def test_copy_in_the_text_part_goes(checkpoint: Path) -> None:
    config = config_of(checkpoint)
    config["text_config"][LAMBDA_KEY] = 0.1
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert run(checkpoint, "0.5") == 0
    assert config_of(checkpoint) == config | {LAMBDA_KEY: 0.5, "text_config": {"x": 1}}


def test_link_into_a_shared_cache_is_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (checkpoint / "config.json").rename(blob)
    (checkpoint / "config.json").symlink_to(blob)
    before = blob.read_text()
    assert run(checkpoint, "0.5") == 0
    assert blob.read_text() == before
    assert config_of(checkpoint)[LAMBDA_KEY] == 0.5


@pytest.mark.parametrize("bad", ["abc", "-1", "nan", "inf", "[0.5]", ""])
def test_bad_lambda(bad: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (checkpoint / "config.json").read_text()
    assert main(["set-lambda", "--", str(checkpoint), bad]) == 2
    assert "lambda must be a finite number >= 0" in capsys.readouterr().err
    assert (checkpoint / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("\udcff", "is not UTF-8"),
        ("[" * 100_000, "nested deeper than 100 lists"),
        ('{"model_type": ["llava"]}', "model_type ['llava'], which AGCI does not support"),
        ("[1]", "must hold a JSON object"),
        ('{"model_type": "llama"}', "which AGCI does not support. Supported: Qwen2.5-VL (qwen2_5_vl)"),
        (None, "There is no"),
    ],
)
def test_bad_config(content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    assert run(tmp_path, "0.5") == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(tmp_path / "config.json") in error
    assert error.count("\n") == 1


def test_one_of_lambda_and_remove(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkpoint) == run(checkpoint, "0.5", "--remove") == 2
    assert capsys.readouterr().err.count("one of the two") == 2


def test_not_writable(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions mean nothing to root, who runs some CIs
    assert run(checkpoint, "0.5") == 2
    assert "write-protected" in capsys.readouterr().err


def test_full_disk_leaves_the_old_file(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = config_of(checkpoint)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(checkpoint, "0.5") == 2
    assert "cannot be changed (No space left on device)" in capsys.readouterr().err
    assert config_of(checkpoint) == before
    assert {file.name for file in checkpoint.iterdir()} == {"config.json"}


def test_held_by_another_program(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(set_lambda, "LOCK_SECONDS", 0)
    with exclusive_lock(checkpoint / "config.json", "testing"):
        assert run(checkpoint, "0.5") == 2
    assert "Another program is changing" in capsys.readouterr().err
    assert LAMBDA_KEY not in config_of(checkpoint)


def test_second_folder(
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The control of a fine-tuning run: another lambda beside the first, the weights once."""
    outside = tmp_path_factory.mktemp("second")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "folder").mkdir()
    assert run(checkpoint, "0.5") == 0
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    control = outside / "deeper" / "lam0"
    capsys.readouterr()
    assert run(checkpoint, "0", "--output", control) == 0
    said = capsys.readouterr().out
    assert f"{LAMBDA_KEY}: 0.5 -> 0.0" in said
    assert "1 linked to those of" in said
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()} == before
    names = {file.name for file in control.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    assert config_of(control) == config_of(checkpoint) | {LAMBDA_KEY: 0.0}
    assert (control / "model.safetensors").samefile(checkpoint / "model.safetensors")
    assert not (control / "tokenizer.json").samefile(checkpoint / "tokenizer.json")
    assert run(checkpoint, "0", "--output", control) == 0
    assert "is already finished" in capsys.readouterr().out
    assert run(checkpoint, "0.2", "--output", control) == 2
    assert "as a copy with lambda 0.0 instead of 0.2" in capsys.readouterr().err

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert run(checkpoint, "--remove", "--output", outside / "copied") == 0
    assert "1 copied" in capsys.readouterr().out
    assert LAMBDA_KEY not in config_of(outside / "copied")
    assert not (outside / "copied" / "model.safetensors").samefile(checkpoint / "model.safetensors")


def test_second_folder_on_a_full_disk(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (checkpoint / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("shutil.copy", full)
    control = checkpoint.with_name(f"{checkpoint.name}-lam0")  # beside it stand the folders of other tests
    assert run(checkpoint, "0", "--output", control) == 2
    assert "-lam0 cannot be written (No space left on device)" in capsys.readouterr().err
    assert not list(checkpoint.parent.glob(f"*{control.name}*"))


@pytest.mark.slow
def test_two_programs_at_once(checkpoint: Path) -> None:
    """Each of many changes finds a whole file and leaves one: the last backup and the result are both values set."""
    values = [str(n / 4) for n in range(1, 9)]
    code = "import sys; from transformers_agci.cli import main; sys.exit(main(['set-lambda', *sys.argv[1:]]))"
    programs = [subprocess.Popen([sys.executable, "-c", code, str(checkpoint), value]) for value in values]
    assert [program.wait() for program in programs] == [0] * 8
    left = config_of(checkpoint).pop(LAMBDA_KEY)
    backup = json.loads((checkpoint / "config.json.bak").read_text())[LAMBDA_KEY]
    assert {str(left), str(backup)} <= set(values)
    assert left != backup


def test_self_check_command(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_checkpoints import random_image

    random_image().save(tmp_path / "picture.png")
    folder = tiny_checkpoint("llava")
    code = main(["self-check", str(folder), "--image", str(tmp_path / "picture.png")])
    table = capsys.readouterr().out
    assert table.startswith("AGCI self-check: LLaVA-v1.5, lambda 0.5")
    failed = [line for line in table.splitlines() if "FAILED" in line]
    assert code == (1 if failed else 0)
    assert all(line.startswith("start-up hook") for line in failed)  # not there in a checkout without an install
    assert main(["self-check", str(folder), "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "with another model.safetensors"),
        ("tokenizer.json", "with another tokenizer.json"),
        ("config.json", "with another config.json"),
        ("missing", "with no tokenizer.json"),
    ],
)
def test_a_folder_that_is_another_copy_is_refused(
    name: str, said: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "tokenizer.json").write_text("{}")
    control = tmp_path_factory.mktemp("other") / "lam0"
    assert run(checkpoint, "0", "--output", control) == 0
    if name == "missing":
        (control / "tokenizer.json").unlink()
    else:
        (control / name).unlink()
        (control / name).write_text('{"model_type": "llava", "other": 1}')
    assert run(checkpoint, "0", "--output", control) == 2
    assert said in capsys.readouterr().err
    assert run(checkpoint, "0", "--output", checkpoint) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_anywhere_a_second_folder_is_whole_or_not_there(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Killed before each of its changes to the disk in turn: the control never runs with the source's lambda."""
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "tokenizer.json").write_text("{}")
    assert run(checkpoint, "0.5") == 0
    whole = tmp_path_factory.mktemp("whole") / "lam0"
    assert run(checkpoint, "0", "--output", whole) == 0
    points = 0
    while True:
        target = tmp_path_factory.mktemp("killed") / "lam0"
        command = ["set-lambda", str(checkpoint), "0", "--output", str(target)]
        killed = killed_at(points, lambda command=command: main(command))
        assert not target.exists() or same_files(target, whole), f"killed at change {points}"
        assert main(command) == 0
        assert same_files(target, whole)
        assert [path.name for path in target.parent.iterdir()] == ["lam0"], f"killed at change {points}"
        if not killed:
            break
        points += 1
    assert points >= 8  # lock, folder, two links or copies, config.json, renames, lock


def test_two_second_folders_at_once(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive_lock(tmp_path / "lam0", "testing"):
        assert run(checkpoint, "0", "--output", tmp_path / "lam0") == 2
    assert "Another program is copying a checkpoint to" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_anywhere_a_change_in_place_is_whole_or_not_made(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The file is the old one or the new one, and the next change leaves nothing of the killed one."""
    old, new = ({"model_type": "llava", LAMBDA_KEY: lam} for lam in (0.5, 0.25))
    points, seen = 0, set()
    while True:
        folder = tmp_path_factory.mktemp("changed")
        (folder / "config.json").write_text(json.dumps(old))
        killed = killed_at(points, lambda folder=folder: run(folder, "0.25"))
        found = config_of(folder)
        assert found in (old, new), f"killed at change {points}"
        seen.add(found[LAMBDA_KEY])
        assert run(folder, "0.25") == 0
        assert config_of(folder) == new
        assert {file.name for file in folder.iterdir()} == {"config.json", "config.json.bak"}
        assert json.loads((folder / "config.json.bak").read_text()) == old
        if not killed:
            break
        points += 1
    assert seen == {0.5, 0.25}
    assert points >= 6


@pytest.mark.slow
def test_many_second_folders_at_once(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All of them end with the whole folder, or say who is at work."""
    for number in range(6):
        (checkpoint / f"model-{number}.safetensors").write_bytes(bytes(1000))
    target = tmp_path_factory.mktemp("many") / "lam0"
    code = "import sys; from transformers_agci.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "set-lambda", str(checkpoint), "0", "--output", str(target)]
    programs = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    said = [program.communicate()[1] for program in programs]
    codes = [program.returncode for program in programs]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    assert all("Another program is copying" in text for code, text in zip(codes, said, strict=True) if code)
    assert len(list(target.iterdir())) == 7
    assert config_of(target)[LAMBDA_KEY] == 0
