"""Building sets goes on after interruptions, kills, truncation and a full disk, and no byte is another one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest

from transformers_agci.data.build import build
from transformers_agci.data.built_set import BuildOptions
from transformers_agci.data.worker_processes import in_order
from transformers_agci.errors import InputError

pytest.importorskip("datasets")
import small_sets
from small_sets import as_folder, content, good_pairs, options

built = small_sets.built  # fixture
source = small_sets.source  # fixture


class Stop(Exception):
    pass


def interrupt(chosen: BuildOptions, after: int) -> Path:
    """Build until `after` items are painted; returns the scratch folder."""

    def stop(done: int, items: int) -> None:
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        build(chosen, progress=stop)
    return chosen.folder / ".set.building"


@pytest.mark.parametrize("after", [1, 5, 14])
def test_an_interrupted_build_goes_on(after: int, source: Path, built: Path, tmp_path: Path) -> None:
    interrupt(options(source, tmp_path), after)
    assert not (tmp_path / "set.json").exists()
    summary = build(options(source, tmp_path))
    assert summary.painted == 14 - after
    assert content(tmp_path) == content(built)
    assert build(options(source, tmp_path)).painted == 0


ODD_RECORDS: list[tuple[str, str]] = [
    ("pool.jsonl", "[]"),
    ("pool.jsonl", "7"),
    ("pool.jsonl", "{}"),
    ("pool.jsonl", '{"end": null}'),
    ("pool.jsonl", '{"drop": [1, 2]}'),
    ("pool.jsonl", '{"pair": ["../a", "a dog", 0, [9, 9]], "fingerprint": "00"}'),
    ("pool.jsonl", '{"pair": ["a", "a dog", 0, [1e9, 9]], "fingerprint": "00"}'),
    ("pool.jsonl", '{"pair": null}'),
    ("settings.json", "[]"),
    ("settings.json", "\xff"),
]


@pytest.mark.parametrize(("name", "record"), ODD_RECORDS)
def test_a_record_that_no_build_writes_is_named(name: str, record: str, source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, kind="similarity", items=2)
    file = interrupt(chosen, 1) / name
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([record.encode("latin-1") + b"\n", *lines[1:]]))
    with pytest.raises(InputError, match=rf"{name}.*give `overwrite` to start over\.$"):
        build(chosen)


def test_a_journal_of_items_that_holds_something_else_is_cut_off(source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, kind="similarity", items=2)
    (interrupt(chosen, 2) / "items.jsonl").write_text("7\n[]\n")
    assert build(chosen).painted == 2


ODD_MANIFESTS: list[tuple[str, Any]] = [
    ("settings", {"images": 3}),
    ("settings", None),
    ("sha256", None),
    ("items", "2"),
    ("dropped", ["a"]),
    ("dropped", {"a": None}),
    ("rows_files", "set.json"),
    ("rows_files", [None]),
]


@pytest.mark.parametrize(("field", "value"), ODD_MANIFESTS)
def test_a_manifest_that_no_build_writes_is_named(field: str, value: Any, source: Path, tmp_path: Path) -> None:
    chosen = options(source, tmp_path, kind="similarity", items=2)
    build(chosen)
    file = tmp_path / "set.manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(InputError, match=rf"set\.manifest\.json.*{field}.*is not the manifest of a built set"):
        build(chosen)


def cut_everywhere(source: Path, tmp_path: Path, step: int) -> int:
    """Cut each file of the last item, and each journal, at every `step`-th byte; resume; compare all bytes.

    Returns how many cuts of a file were tried. A similarity set of two items, because each cut verifies the whole set.
    The nine images are cut at the same byte together: one that was not painted again would differ from its whole.
    """
    chosen = options(source, tmp_path / "out", kind="similarity", items=2)
    build(replace(chosen, folder=tmp_path / "whole"))
    expected = content(tmp_path / "whole")
    scratch = interrupt(chosen, 2)
    shutil.copytree(scratch, tmp_path / "pristine")
    images = [chosen.folder / "set_images" / f"000000001_{k}.jpg" for k in range(9)]
    groups = [images, *([scratch / name] for name in ("items.jsonl", "pool.jsonl", "cells.bin"))]
    whole_files = [{path: path.read_bytes() for path in group} for group in groups]
    cuts = 0
    for contents in whole_files:
        for length in range(0, max(map(len, contents.values())), step):
            for written in chosen.folder.glob("set*.json*"):
                written.unlink()
            shutil.copytree(tmp_path / "pristine", scratch, dirs_exist_ok=True)
            cut = {path: whole for path, whole in contents.items() if length < len(whole)}
            for path, whole in cut.items():
                path.write_bytes(whole[:length])
            build(chosen)
            assert content(chosen.folder) == expected, ([path.name for path in cut], length)
            cuts += len(cut)
    return cuts


def test_truncation_of_the_last_item_is_survived(source: Path, tmp_path: Path) -> None:
    assert cut_everywhere(source, tmp_path, step=397) >= 20


@pytest.mark.slow
def test_truncation_at_every_byte_of_the_last_items_files_is_survived(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # no power fails here, and each of 3,000 builds syncs six times
    assert cut_everywhere(source, tmp_path, step=1) > 6000


def test_truncation_of_a_finished_set_is_repaired(source: Path, built: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path))
    for name in ("set.json", "set_negatives.json", "set_images/000000013_8.jpg"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1])
        assert build(options(source, tmp_path)).painted == 14
        assert content(tmp_path) == content(built)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(workers: int, source: Path, built: Path, tmp_path: Path) -> None:
    assert build(options(source, tmp_path), workers=workers).painted == 14
    assert content(tmp_path, without=()) == content(built, without=())


@pytest.mark.slow
def test_a_sigkill_is_survived(tmp_path: Path) -> None:
    """A real build in a process of its own, killed in the middle, its workers with it; then the same command again."""
    made = as_folder(good_pairs(60), tmp_path / "source")
    command = [
        sys.executable,
        "-m",
        "transformers_agci.cli",
        "data",
        "build-probe",
        "--source",
        str(made),
        "--name",
        "set",
        "--workers",
        "2",
        "--output_dir",
    ]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = killed / ".set.building" / "items.jsonl"
    while not (journal.exists() and journal.stat().st_size > 3 * 600):
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "set.json").exists()
    subprocess.run([*command, str(killed)], check=True)
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    assert content(killed, without=()) == content(tmp_path / "whole", without=())


def test_other_settings_are_refused_and_overwrite_is_explicit(source: Path, built: Path, tmp_path: Path) -> None:
    interrupt(options(source, tmp_path), 2)
    with pytest.raises(InputError, match=r"begun with other settings \(seed was 0, now 1\)"):
        build(options(source, tmp_path, seed=1))
    build(options(source, tmp_path))
    with pytest.raises(InputError, match=r"quality was 75, now 80.*`overwrite`"):
        build(options(source, tmp_path, quality=80))
    assert content(tmp_path) == content(built)
    build(options(source, tmp_path, seed=1), overwrite=True)
    assert content(tmp_path) != content(built)


def test_an_interrupted_overwrite_goes_on_without_the_word(source: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path))

    def stop(done: int, items: int) -> Never:
        raise Stop

    with pytest.raises(Stop):
        build(options(source, tmp_path, seed=1), overwrite=True, progress=stop)
    assert build(options(source, tmp_path, seed=1)).painted == 13


def test_two_sets_never_share_an_image_folder(source: Path, tmp_path: Path) -> None:
    build(options(source, tmp_path, images="images"))
    with pytest.raises(InputError, match="holds the images of"):
        build(options(source, tmp_path, name="other", images="images"))


def test_a_second_process_on_the_same_set_is_refused(source: Path, tmp_path: Path) -> None:
    def again(done: int, items: int) -> None:
        build(options(source, tmp_path))

    with pytest.raises(InputError, match="Another program is building"):
        build(options(source, tmp_path), progress=again)


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(InputError, match="worker process was killed"):
        list(in_order(os._exit, [9] * 3, processes=2))  # os._exit(9) is what a kill looks like from outside


@pytest.mark.slow
def test_a_start_that_fails_in_a_process_says_why() -> None:
    for processes in (1, 2):
        with pytest.raises(ValueError, match="invalid literal"):
            list(in_order(abs, range(3), processes, start=(int, ("no number",))))


def _write_later(task: tuple[float, Path]) -> None:
    time.sleep(task[0])
    task[1].touch()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_tasks_under_way_are_broken_off(stop: type[BaseException], tmp_path: Path) -> None:
    begun = in_order(_write_later, [(0, tmp_path / "first"), (3, tmp_path / "second")], processes=2)
    next(begun)
    with pytest.raises(stop):
        begun.throw(stop)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    source: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.data import painting

    real, calls = painting.open_atomic, Counter()

    def full(*args: Any, **options: Any) -> Any:
        calls["write"] += 1
        if calls["write"] > 30:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(painting, "open_atomic", full)
    with pytest.raises(InputError, match=r"No space left on device.*what was finished is kept"):
        build(options(source, tmp_path))
    monkeypatch.undo()
    assert build(options(source, tmp_path)).painted == 11
    assert content(tmp_path) == content(built)
