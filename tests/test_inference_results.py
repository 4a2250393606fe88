"""Result files survive everything: torn lines, other numbers of processes, bad rows, second writers."""

import itertools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.errors import InputError
from transformers_agci.inference.runner import output_paths
from transformers_agci.storage import manifest
from transformers_agci.storage.result_file import ResultFile, merge_shards
from transformers_agci.storage.result_lines import FailedRow
from transformers_agci.storage.result_names import Shard, parse_shard

SIZES = [4, 3, 5, 2]  # rows per block
SETTINGS = {"model": {"weights": "abc"}, "lambda": 0.5}
BAD = {1: [FailedRow(5, "in.json:6", "in.json:6: the image is missing.")]}  # block -> its rows without an answer


def rows_of(block: int, bad: dict[int, list[FailedRow]]) -> list[dict]:
    first = sum(SIZES[:block])
    without = {row.row for row in bad.get(block, ())}
    return [
        {"id": n, "caption": "é\u2028\ud800", "margin": n / 3}
        for n in range(first, first + SIZES[block])
        if n not in without
    ]


def fill(
    path: Path,
    shard: Shard | None = None,
    bad: dict[int, list[FailedRow]] | None = None,
    stop: int = 99,
    **options: Any,
) -> None:
    """Write every unfinished block of the shard, at most `stop` of them, and merge where one process does all."""
    bad = bad or {}
    with ResultFile(path, SIZES, SETTINGS, shard=shard, **options) as file:
        for block in file.missing()[:stop]:
            if shard is None or shard.owns(block):
                file.write(block, rows_of(block, bad), bad.get(block, ()))
        if shard is None and not file.missing():
            file.merge()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(params=[{}, BAD], ids=["clean", "bad row"])
def bad(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.fixture
def whole(tmp_path: Path, bad: dict) -> tuple[bytes, bytes]:
    """The bytes of an undisturbed run, and of its list of bad rows."""
    fill(tmp_path / "whole.jsonl", bad=bad)
    return contents(tmp_path / "whole.jsonl")


def contents(path: Path) -> tuple[bytes, bytes]:
    other = path.with_name(f"{path.stem}.bad.jsonl")
    return path.read_bytes(), other.read_bytes() if other.exists() else b""


def names(folder: Path, stem: str) -> set[str]:
    return {file.name for file in folder.iterdir() if file.name.startswith(f"{stem}.")}


def test_rows_stand_in_input_order_and_nothing_else_is_left(
    tmp_path: Path, whole: tuple[bytes, bytes], bad: dict
) -> None:
    written = [json.loads(line)["id"] for line in whole[0].splitlines()]
    assert written == [n for n in range(sum(SIZES)) if n != 5 or not bad]
    expected = {"whole.jsonl", "whole.manifest.json"} | ({"whole.bad.jsonl"} if bad else set())
    assert names(tmp_path, "whole") == expected


def test_truncated_at_every_byte_of_its_last_block_it_resumes_to_the_same_bytes(
    tmp_path: Path, whole: tuple[bytes, bytes], bad: dict
) -> None:
    path = tmp_path / "whole.jsonl"
    end = len(whole[0])
    last_block = end - sum(map(len, whole[0].splitlines(keepends=True)[-SIZES[-1] :]))
    for size in (*range(0, last_block, 17), *range(last_block, end + 1)):
        path.write_bytes(whole[0][:size])
        fill(path, bad=bad)
        assert contents(path) == whole, size


def test_a_bad_row_whose_block_was_not_written_is_forgotten(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    """The list of bad rows is written before its block: a kill between the two leaves it alone."""
    path = tmp_path / "A.jsonl"
    fill(path, bad=BAD, stop=2)
    path.write_bytes(b"".join(whole[0].splitlines(keepends=True)[:4]))  # block 0 only
    fill(path, bad={})
    assert contents(path)[1] == b""
    assert len(path.read_bytes().splitlines()) == sum(SIZES)


@pytest.mark.parametrize("counts", [(1,), (2,), (3,), (3, 2), (2, 1), (7,)], ids=str)
def test_any_number_of_shards_gives_the_same_bytes(
    tmp_path: Path, whole: tuple[bytes, bytes], bad: dict, counts: tuple[Any, ...]
) -> None:
    path = tmp_path / "A.jsonl"
    for count in counts[:-1]:  # interrupted: each shard does one block
        for index in range(count):
            fill(path, Shard(index, count), bad, stop=1)
    for index in reversed(range(counts[-1])):
        fill(path, Shard(index, counts[-1]), bad)
    merged = merge_shards(path)
    assert contents(path) == whole
    assert (merged.rows, len(merged.failed)) == (sum(SIZES) - len(bad), len(bad))
    assert names(tmp_path, "A") == {name.replace("whole", "A") for name in names(tmp_path, "whole")}


def test_one_process_goes_on_where_shards_and_a_single_run_stopped(
    tmp_path: Path, whole: tuple[bytes, bytes], bad: dict
) -> None:
    path = tmp_path / "A.jsonl"
    fill(path, bad=bad, stop=1)
    fill(path, Shard(0, 2), bad)
    part = tmp_path / "A.parts" / "0-of-2.jsonl"
    part.write_bytes(part.read_bytes()[:-3])  # killed while it wrote
    fill(path, bad=bad)
    assert contents(path) == whole


def test_a_killed_shard_is_done_again(tmp_path: Path, whole: tuple[bytes, bytes], bad: dict) -> None:
    path = tmp_path / "A.jsonl"
    for index in (0, 1):
        fill(path, Shard(index, 2), bad)
    part = tmp_path / "A.parts" / "1-of-2.jsonl"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(InputError, match="lacks 1 of 4 blocks"):
        merge_shards(path)
    fill(path, Shard(1, 2), bad)
    merge_shards(path)
    assert contents(path) == whole


def test_merging_twice_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    with pytest.raises(InputError, match=r"There is no .*A\.manifest\.json"):
        merge_shards(path)
    fill(path)
    assert merge_shards(path).rows == sum(SIZES)
    fill(path, stop=1, overwrite=True)
    with pytest.raises(InputError, match="has 1 of 4 blocks"):
        merge_shards(path)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    fill(path)
    before = path.read_bytes()
    with pytest.raises(InputError) as error, ResultFile(path, SIZES, {"model": {"weights": "xyz"}, "lambda": 0.5}):
        pass
    assert "model.weights is 'abc' there and 'xyz' now" in str(error.value)
    assert "lambda" not in str(error.value)
    assert "`overwrite`" in str(error.value)
    assert path.read_bytes() == before
    with ResultFile(path, SIZES, {"other": 1}, overwrite=True) as file:
        assert not file.finished
    assert path.read_bytes() == b""


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    path.write_text("precious\n")
    with pytest.raises(InputError, match=r"without A.manifest.json"), ResultFile(path, SIZES, SETTINGS):
        pass
    assert path.read_text() == "precious\n"


def test_more_rows_than_asked_for_are_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    fill(path)
    with pytest.raises(InputError, match="holds 14 rows, more than the 4"), ResultFile(path, SIZES[:1], SETTINGS):
        pass
    assert len(path.read_bytes().splitlines()) == 14


def test_fewer_rows_then_all(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    """--limit cuts the last block short; without it that block is done again."""
    path = tmp_path / "A.jsonl"
    with ResultFile(path, [4, 1], SETTINGS) as file:
        file.write(0, rows_of(0, {}))
        file.write(1, rows_of(1, {})[:1])
    fill(path)
    assert len(path.read_bytes().splitlines()) == sum(SIZES)


def _hold(path: Path, shard: Shard | None, ready: Any, release: Any) -> None:
    with ResultFile(path, SIZES, SETTINGS, shard=shard):
        ready.set()
        release.wait(30)


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (None, None, True),
        (None, Shard(0, 2), True),
        (Shard(0, 2), None, True),
        (Shard(0, 2), Shard(0, 2), True),
        (Shard(0, 2), Shard(1, 2), False),
    ],
    ids=str,
)
def test_a_second_process_on_the_same_output_is_refused(
    tmp_path: Path, first: Shard | None, second: Shard | None, clash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    path = tmp_path / "A.jsonl"
    holder = context.Process(target=_hold, args=(path, first, ready, release))
    holder.start()
    try:
        assert ready.wait(30)
        monkeypatch.setattr("transformers_agci.storage.result_file.PATIENCE", 0.1)
        if clash:
            with pytest.raises(InputError, match="is being written by another process"):
                fill(path, second)
        else:
            fill(path, second)
    finally:
        release.set()
        holder.join(30)
    assert not list(tmp_path.glob("**/*.lock"))
    fill(path, second)


def test_a_lock_file_that_a_kill_left_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "A.lock").touch()
    fill(tmp_path / "A.jsonl")
    assert names(tmp_path, "A") == {"A.jsonl", "A.manifest.json"}


def test_unwritable_outputs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "A.jsonl"):
        with pytest.raises(InputError, match=r"is a folder|Cannot write"), ResultFile(path, SIZES, SETTINGS):
            pass


def test_overwrite_is_not_for_one_of_several_shards(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="delete the other shards' work"),
        ResultFile(tmp_path / "A.jsonl", SIZES, SETTINGS, shard=Shard(0, 2), overwrite=True),
    ):
        pass


def test_the_manifest_keeps_blocks_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    with ResultFile(path, [4, 4, 4, 1], SETTINGS, {"model": "here"}) as file:
        file.record({"seconds": 1})
        file.record({"seconds": 2})
    found = manifest.read(path)
    assert found is not None
    assert found["blocks"] == [[4, 3], [1, 1]]
    assert manifest.block_sizes(found) == [4, 4, 4, 1]
    assert [run["seconds"] for run in found["runs"]] == [1, 2]
    assert (found["settings"], found["notes"], found["rows"]) == (SETTINGS, {"model": "here"}, 13)


def test_output_paths_do_not_clash() -> None:
    for name, lambdas in itertools.product(("A.json", "A.jsonl", "A", "A.b"), ([0.5], [0, 0.5, 1.25])):
        paths = output_paths(Path("d") / name, lambdas)
        assert len({manifest.path_of(path) for path in paths}) == len(lambdas)
        assert (paths == [Path("d") / name]) == (len(lambdas) == 1)
    with pytest.raises(InputError, match="run once"):
        output_paths(Path("A"), [0.5, 0.5])


def test_shards_are_spelled_i_of_n() -> None:
    assert parse_shard("3/4") == Shard(3, 4)
    for wrong in (
        "4/4",
        "1",
        "-1/4",
        "a/b",
        "1/0",
        "",
        "0x10",
        "0x1/0x2",
        "1/2/3",
        " 1/2",
        "1_0/2_0",
        "\u0661/\u0664",
        "9" * 5000 + "/2",
    ):
        with pytest.raises(InputError, match="0/4"):
            parse_shard(wrong)
