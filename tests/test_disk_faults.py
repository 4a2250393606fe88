"""A full or read-only disk, and files that vanish: one sentence, nothing half-written left behind."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_llava
import pytest
import training_data as td
from PIL import Image
from tiny_checkpoints import Checkpoints

from transformers_agci.cli import main
from transformers_agci.embedded.probe_set import build_probe_set, build_similarity_set
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.storage import atomic
from transformers_agci.storage.interruption import interrupted_between_pieces
from transformers_agci.storage.json_file import json_bytes
from transformers_agci.training import merge

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


def fail_at(number: int, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th file that is begun (from 0), and all after it, cannot be written."""
    begun, real = [0], os.open

    def failing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_EXCL:
            begun[0] += 1
            if begun[0] > number:
                raise error
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(atomic.os, "open", failing)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("number", [0, 5, 18])
@pytest.mark.parametrize("build", [build_probe_set, build_similarity_set, embedded_data])
def test_embedded_sets(
    build: Callable[..., Any], number: int, error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(number, error, monkeypatch)
    with pytest.raises(InputError, match=f"cannot be written .{error.strerror}."):
        build(tmp_path / "set", 2, 0)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.new"))
    assert not (tmp_path / "set" / "embedded_probe.json").exists()
    build(tmp_path / "set", 2, 0)
    assert len(list((tmp_path / "set" / "images").iterdir())) == 18


@pytest.mark.parametrize("build", [build_probe_set, build_similarity_set, embedded_data])
def test_embedded_sets_where_no_folder_can_be_made(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        build(tmp_path / "file" / "set", 1, 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_sample_instruct(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": str(n), "conversations": conversations} for n in range(3)]
    (tmp_path / "mix.json").write_bytes(json_bytes(rows))
    command = ["data", "sample-instruct", "--mix", str(tmp_path / "mix.json"), "--n", "2", "--keep_text_only"]
    command += ["--image_root", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    fail_at(number, FULL, monkeypatch)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"cannot be written into {tmp_path / 'out'} (No space left on device)" in said
    assert said.count("\n") == 1
    monkeypatch.undo()
    assert main(command) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("number", [0, 1, 4, 6, 7])
def test_convert(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = original_llava.write_original("llava", original_llava.reference_model("llava"), tmp_path / "original")
    fail_at(number, READ_ONLY, monkeypatch)
    assert main(["convert-llava", str(source), str(tmp_path / "hf")]) == 2
    assert "could not be written (Read-only file system)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


@pytest.mark.slow
def test_an_output_deleted_while_it_is_made(
    tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unfinished folder of a merge, a copy and a conversion, in turn."""
    base, adapter = tiny_checkpoint("llava"), tmp_path / "adapter"
    data = td.write_data(tmp_path / "data")
    raw = td.training_recipe("llava", base, data, adapter, max_steps=1)
    assert main(["train-lora", str(td.write_recipe(tmp_path / "train.yaml", raw))]) == 0
    recipe = {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter), "export_dir": "x"}
    path = td.write_recipe(tmp_path / "merge.yaml", recipe)
    target = tmp_path / "place" / "out"
    real = shutil.copy

    def copy_and_delete(source: Any, folder: Any) -> Any:
        made = real(source, folder)
        shutil.rmtree(target.with_name(".out.unfinished"))
        return made

    for command in (
        ["merge-lora", str(path), f"export_dir={target}"],
        ["set-lambda", str(base), "0.5", "--output", str(target)],
    ):
        monkeypatch.setattr("shutil.copy", copy_and_delete)
        capsys.readouterr()
        assert main(command) == 2, command
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("agci: ")
        assert "No such file or directory" in said
        assert not list((tmp_path / "place").iterdir())
        monkeypatch.undo()
        assert main(command) == 0
        shutil.rmtree(target)


def test_a_training_manifest_deleted_while_it_runs(tmp_path: Path) -> None:
    from transformers_agci.training import outputs

    outputs.open_output(tmp_path, {}, {}, overwrite=False)
    (tmp_path / outputs.MANIFEST).unlink()
    with pytest.raises(InputError, match="was removed while the training ran"):
        outputs.add_run(tmp_path, {}, finished=True)


def test_a_fault_that_no_command_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers_agci.commands import self_check

    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(self_check, "run_families", failing)
    assert main(["families"]) == 2
    assert capsys.readouterr().err == f"agci: {tmp_path / 'x'} cannot be read or written (No space left on device).\n"


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_interruptible")
def test_an_interruption_waits_for_the_end_of_a_piece() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupted_between_pieces() as check:
        for piece in range(5):
            if piece == 2:
                signal.raise_signal(signal.SIGINT)
            done.append(piece)
            check()
    assert done == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_interruptible")
def test_a_second_interruption_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_between_pieces():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was held back")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupting_a_merge(
    tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interruption arrives while a weight is computed, where torch may turn it into another error."""
    base, data = tiny_checkpoint("llava"), td.write_data(tmp_path / "data")
    raw = td.training_recipe("llava", base, data, tmp_path / "adapter", max_steps=1)
    assert main(["train-lora", str(td.write_recipe(tmp_path / "train.yaml", raw))]) == 0
    recipe = {"model_name_or_path": str(base), "adapter_name_or_path": str(tmp_path / "adapter"), "export_dir": "x"}
    path = td.write_recipe(tmp_path / "merge.yaml", recipe)
    real, pieces = merge.Change.delta, []

    def interrupted(change: merge.Change) -> Any:
        pieces.append(change.layer)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None
        return real(change)

    monkeypatch.setattr(merge.Change, "delta", interrupted)
    (tmp_path / "place").mkdir()
    assert main(["merge-lora", str(path), f"export_dir={tmp_path / 'place' / 'out'}"]) == 130
    assert len(pieces) == 1
    assert "interrupted" in capsys.readouterr().err
    assert not list((tmp_path / "place").iterdir())


# --- files that may not grow ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 2_000, 40_000])
@pytest.mark.parametrize(
    "words",
    [
        ["similarity", "--items", "4", "--answer_file", "S.jsonl"],
        ["flow", "--items", "1", "--output_dir", "F"],
        ["flow", "--image", "x.png", "--question", "Is there a dog?", "--output_path", "f.png"],
        ["probe", "--items", "2", "--answer_file", "A.jsonl"],
    ],
    ids=lambda words: "-".join(word.strip("-") for word in words[:2]),
)
def test_a_file_that_may_not_grow(
    words: list[str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a quota or `ulimit -f` does: one sentence, and the same command goes on when there is room."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((84, 84), 90).convert("RGB").save("x.png")
    lambdas = ["--global_context_lambda", "0.5", "--quiet"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        code = main([*words, *lambdas])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert code in ((2,) if most < 40_000 else (0, 2)), said
    if code == 2:
        assert said.splitlines()[-1].startswith("agci: ") and "File too large" in said.splitlines()[-1], said
        assert main([*words, *lambdas]) == 0
    assert not list(tmp_path.rglob("*.new"))
