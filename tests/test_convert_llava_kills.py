"""`agci convert-llava` after a kill, on a full disk, and on what is there already."""

from pathlib import Path
from typing import Any

import original_llava as llava
import pytest
import transformers
from original_llava import ROWS, read

from transformers_agci import cli
from transformers_agci.conversion import convert as converting
from transformers_agci.conversion.convert import MANIFEST, convert


def test_manifest_names_sources_and_versions(tmp_path: Path) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", kind="bin", tower=False)
    tower = llava.write_tower(model, tmp_path / "clip")
    told = read(convert(source, tmp_path / "hf", tower=tower).folder, MANIFEST)
    names = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "config.json", "tokenizer.model"}
    assert set(told["source"]) == {f"original/{name}" for name in names} | {"clip/pytorch_model.bin"}
    assert all(len(entry["sha256"]) == 64 and entry["bytes"] > 0 for entry in told["source"].values())
    assert told["versions"]["transformers"] == transformers.__version__
    assert told["embedding_rows"]["source"] == ROWS


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = llava.write_original("llava_next", llava.reference_model("llava_next"), tmp_path / "original")
    first, second = (convert(source, tmp_path / name).folder for name in ("first", "second"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_conversion_that_did_not_finish(
    failure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "in" / "original")
    calls = []
    save = converting.save_file

    def fails_late(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise failure
        save(*args, **kwargs)

    monkeypatch.setattr(converting, "save_file", fails_late)
    expected = 130 if isinstance(failure, KeyboardInterrupt) else 2
    assert cli.main(["convert-llava", str(source), str(tmp_path / "out" / "hf")]) == expected
    told = capsys.readouterr().err
    assert expected == 130 or "the disk is full" in told
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_conversion_left_is_hidden_and_cleared_away(tmp_path: Path) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "original")
    left = tmp_path / ".hf.unfinished"
    left.mkdir()
    (left / "config.json").write_text("{}")
    assert not (tmp_path / "hf").exists()
    convert(source, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "original"]


def test_overwrite_replaces_only_what_a_conversion_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "original")
    command = ["convert-llava", str(source), str(tmp_path / "hf")]
    assert cli.main(command) == 0
    (tmp_path / "hf" / "left over.txt").write_text("old")
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "holds this conversion already" in capsys.readouterr().out
    assert cli.main([*command, "--dtype", "bfloat16"]) == 2
    said = capsys.readouterr().err
    assert "dtype is 'float32' there and 'bfloat16' now" in said
    assert "--overwrite" in said
    weights = next((tmp_path / "hf").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert cli.main(command) == 2
    assert f"{weights.name} has {len(whole) - 1} bytes instead of {len(whole)}" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0
    assert weights.read_bytes() == whole
    assert not (tmp_path / "hf" / "left over.txt").exists()
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("mine")
    assert cli.main(["convert-llava", str(source), str(home), "--overwrite"]) == 2
    assert "only what an earlier conversion wrote" in capsys.readouterr().err
    assert (home / "letter.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "home", "original"]
