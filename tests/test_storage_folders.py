"""Folders that appear whole or not at all."""

import errno
from pathlib import Path
from typing import Any, Never

import pytest
from test_storage import names

from transformers_agci.errors import InputError
from transformers_agci.storage import folder
from transformers_agci.storage.folder import committed_folder, damaged_file, file_sizes, same_files, unfinished_folder


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with committed_folder(target, "making") as made:
        assert made is not None
        (made / "a").write_bytes(b"1")
        assert not target.exists()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), InputError("no")])
def test_a_folder_that_fails_is_removed(tmp_path: Path, error: Any) -> Never:
    with pytest.raises(type(error)), committed_folder(tmp_path / "out", "making") as made:
        (made / "a").write_bytes(b"1")
        raise error
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    unfinished_folder(target).mkdir()
    (unfinished_folder(target) / "old").write_bytes(b"")
    with committed_folder(target, "making") as made:
        assert names(made) == []
    assert names(tmp_path) == ["out"]


def test_a_linked_unfinished_folder_is_not_entered(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"")
    unfinished_folder(tmp_path / "out").symlink_to(victim)
    with committed_folder(tmp_path / "out", "making") as made:
        (made / "a").write_bytes(b"")
    assert names(victim) == ["precious"]
    assert names(tmp_path / "out") == ["a"]


def test_a_finished_folder_needs_no_work_and_another_one_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_bytes(b"1")
    with committed_folder(target, "making", is_finished=lambda found: (found / "a").exists()) as made:
        assert made is None
    with (
        pytest.raises(InputError, match="exists and is not empty"),
        committed_folder(target, "making", is_finished=lambda found: False),
    ):
        pass
    assert (target / "a").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"x") if kind == "file" else target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists and is not empty"), committed_folder(target, "making"):
        pass


def test_an_empty_folder_is_filled_and_another_one_replaced_on_demand(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for content in (b"1", b"2"):
        with committed_folder(target, "making", replace=True) as made:
            (made / "a").write_bytes(content)
    assert (target / "a").read_bytes() == b"2"
    assert names(tmp_path) == ["out"]


def test_an_equal_folder_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    numbers = set()
    for _ in range(2):
        with committed_folder(target, "making", replace=True, keep_equal=True) as made:
            (made / "a").write_bytes(b"1")
        numbers.add((target / "a").stat().st_ino)
    assert len(numbers) == 1
    with committed_folder(target, "making", replace=True, keep_equal=True) as made:
        (made / "a").write_bytes(b"2")
    assert (target / "a").read_bytes() == b"2"
    assert names(tmp_path) == ["out"]


def test_a_run_killed_between_its_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_bytes(b"old")
    rename = Path.rename

    def killed(self: Path, to: Path) -> Path:
        if to == target:
            raise SystemExit("killed")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(folder, "_remove", lambda path: None)
    with pytest.raises(SystemExit), committed_folder(target, "making", replace=True):
        pass
    monkeypatch.undo()
    assert not target.exists()
    with committed_folder(target, "making", is_finished=lambda found: True) as made:
        assert made is None
    assert (target / "a").read_bytes() == b"old"


def test_two_processes_make_one_folder(tmp_path: Path) -> None:
    with (
        committed_folder(tmp_path / "out", "making") as made,
        pytest.raises(InputError, match="Another program is making"),
        committed_folder(tmp_path / "out", "making"),
    ):
        pass
    assert made is not None
    assert names(tmp_path) == ["out"]


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12")
    sizes = file_sizes(tmp_path, "*.safetensors", "*.json")
    assert sizes == {"a.safetensors": 2}
    assert damaged_file(tmp_path, sizes) is None
    (tmp_path / "a.safetensors").write_bytes(b"1")
    assert damaged_file(tmp_path, sizes) == "a.safetensors has 1 bytes instead of 2"
    (tmp_path / "a.safetensors").unlink()
    assert damaged_file(tmp_path, sizes) == "a.safetensors is missing"


def test_same_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_bytes(b"1")
    assert same_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "deep" / "x").write_bytes(b"2")
    assert not same_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "deep" / "x").write_bytes(b"1")
    (tmp_path / "b" / "y").write_bytes(b"")
    assert not same_files(tmp_path / "a", tmp_path / "b")
