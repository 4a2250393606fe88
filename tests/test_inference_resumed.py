"""A run of the engine goes on: after truncation and Ctrl-C, in shards, at other lambdas; other settings are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny_run import LAMBDAS, ask, before_forward, contents, probe, rows

from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.runner import output_paths
from transformers_agci.method.handle import current_handle
from transformers_agci.storage.result_file import merge_shards
from transformers_agci.storage.result_names import Shard

loaded = tiny_run.loaded  # fixture
pictures = tiny_run.pictures  # fixture


@pytest.mark.slow
def test_truncated_at_every_byte_of_the_last_block_it_resumes_to_the_same_bytes(
    loaded: LoadedModel, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "A.jsonl"
    ask(loaded, probe(pictures), path, [0.5])
    whole = path.read_bytes()
    last_block = len(whole) - sum(map(len, whole.splitlines(keepends=True)[-8:]))
    for size in range(last_block, len(whole), 37):  # every byte: test_inference_results
        path.write_bytes(whole[:size])
        counts = ask(loaded, probe(pictures), path, [0.5]).counts
        assert (counts.rows, counts.already_done) == (8, 16)
        assert path.read_bytes() == whole


def test_ctrl_c_keeps_finished_blocks(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "whole" / "A.jsonl")
    calls = iter([*[None] * 6, KeyboardInterrupt])

    def interrupt(*_: object) -> None:
        if next(calls, None):
            raise KeyboardInterrupt

    with before_forward(loaded, interrupt), pytest.raises(KeyboardInterrupt):
        ask(loaded, probe(pictures), tmp_path / "cut" / "A.jsonl")
    assert len(rows(tmp_path / "cut" / "A.lam0.jsonl")) == 8
    assert current_handle(loaded.model) is None
    counts = ask(loaded, probe(pictures), tmp_path / "cut" / "A.jsonl").counts
    assert counts.already_done == 16
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_only_the_lambda_that_lacks_a_block_is_run(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "A.jsonl")
    whole = contents(tmp_path)
    (tmp_path / "A.lam0.5.jsonl").write_bytes(b"")
    counts = ask(loaded, probe(pictures), tmp_path / "A.jsonl").counts
    assert (counts.rows, counts.forwards) == (24, 6)
    assert contents(tmp_path) == whole


def test_shards_and_one_process_write_the_same_bytes(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "one" / "A.jsonl")
    for index in (1, 0):
        summary = ask(loaded, probe(pictures), tmp_path / "two" / "A.jsonl", shard=Shard(index, 2))
        assert not summary.complete
        assert "merge-shards" in summary.lines()[-1]
    for path in output_paths(tmp_path / "two" / "A.jsonl", LAMBDAS):
        merge_shards(path)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_shard_counts_its_own_blocks_only(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    """24 rows in 3 blocks for 2 shards: 16 and 8 rows at each lambda."""
    path = tmp_path / "A.jsonl"
    for index, own in ((0, 32), (1, 16), (0, 32)):
        summary = ask(loaded, probe(pictures), path, shard=Shard(index, 2))
        before = index == 0 and summary.counts.rows == 0
        assert (summary.counts.rows, summary.counts.already_done) == ((0, own) if before else (own, 0))
    assert "32 already done" in summary.lines()[0]


def test_a_shard_without_a_block_says_so(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    for index in range(3):
        ask(loaded, probe(pictures), path, [0.5], shard=Shard(index, 5))
    summary = ask(loaded, probe(pictures), path, [0.5], shard=Shard(4, 5))
    assert (summary.counts.rows, summary.counts.already_done) == (0, 0)
    assert summary.lines()[0].startswith("0 answers in")
    assert "This shard has nothing to do: the input has 3 blocks, fewer than the 5 shards." in summary.lines()
    merge_shards(path)
    assert len(rows(path)) == 24


def test_swapped_rows_are_refused_when_a_run_goes_on(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    ask(loaded, probe(pictures), path, [0.5])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=r"A\.jsonl:1 is not the result of row 1 of the input: its cell is 1"):
        ask(loaded, probe(pictures), path, [0.5])


def test_rows_that_have_a_prediction_already_are_asked_and_continued(
    loaded: LoadedModel, pictures: Path, tmp_path: Path
) -> None:
    """The input is an earlier result file: its answers give way to the new ones."""
    path = tmp_path / "A.jsonl"
    asked = [replace(each, row={**each.row, "prediction": "Maybe", "qs": ""}) for each in probe(pictures)]
    ask(loaded, asked, path, [0.5])
    assert {row["prediction"] for row in rows(path)} <= {"Yes", "No"}
    assert ask(loaded, asked, path, [0.5]).counts.already_done == 24


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 3}, "batch_size is 4 there and 3 now"),
        ({"method": "uniform"}, "method is 'agci' there and 'uniform' now"),
        ({"settings": {"prompt": "other"}}, "prompt is 'not set' there and 'other' now"),
    ],
)
def test_other_settings_are_refused(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.5])
    with pytest.raises(InputError, match=named):
        ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.5], **change)
    with pytest.raises(InputError, match=r"lambda is 0\.5 there and 0\.7 now"):
        ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.7])
    ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.5], overwrite=True, **change)
