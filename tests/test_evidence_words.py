"""What is said of results with missing rows, few items, other negatives, or one kind of rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evidence import margins, rows, write

from transformers_agci.cli import main
from transformers_agci.experiments.position.comparison import compare
from transformers_agci.experiments.position.results import read_results

Lines = list[dict[str, Any]]


def two_kinds(items: int = 40, seed: int = 0) -> Lines:
    return rows(margins(items, seed, bias=0.3), margins(items, seed + 1, mean=-1.3))


def unreadable(lines: Lines, answer: str, every: int = 3) -> Lines:
    chosen = [k for k, row in enumerate(lines) if row["answer"] == answer][::every]
    return [row | {"prediction": "Unclear"} if k in set(chosen) else row for k, row in enumerate(lines)]


def test_a_position_effect_is_of_one_measure_for_all_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = [{k: v for k, v in row.items() if k != "margin"} for row in two_kinds(seed=4)]
    paths = [write(tmp_path / f"{k}.jsonl", lines) for k, lines in enumerate((two_kinds(), bare))]
    assert main(["evidence", *paths, "--draws", "20"]) == 0
    assert "position effect on answers, p" in capsys.readouterr().out


def test_results_of_no_rows_alone_have_a_position_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no = [row for row in two_kinds() if row["answer"] == "No"]
    path = write(tmp_path / "a.jsonl", no)
    assert main(["evidence", path, "--draws", "20"]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[1].split()[-5] not in ("-", "a") and "position effect on margins, p" in table[0]
    assert main(["metrics", "--results_file", path, "--draws", "20"]) == 0
    assert "Only No rows: accuracy is the No-rate" in capsys.readouterr().out


def test_three_items_that_flip_whole_are_no_difference(tmp_path: Path) -> None:
    """As likely as one in four where nothing differs."""
    ones = np.ones((3, 9))
    first, second = (read_results(write(tmp_path / f"{k}.jsonl", rows(k * ones))) for k in (-1, 1))
    change = compare(first, second).yes.accuracy.overall
    assert change.estimate == 1 and not change.excludes(0)


def test_no_rows_about_other_captions_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(12)
    other = [row | {"caption": "other " + row["caption"]} if row["answer"] == "No" else row for row in lines]
    blank = [row | {"caption": row["caption"] + " "} for row in lines]
    paths = [write(tmp_path / f"{k}.jsonl", content) for k, content in enumerate((lines, other, blank))]
    assert main(["metrics", "--results_file", *paths[:2]]) == 2
    assert "'0' and '1' have other negatives: the No rows of i000 ask about" in capsys.readouterr().err
    assert main(["evidence", paths[0], paths[2], "--draws", "20"]) == 0


def test_failures_are_corrected_over_answers_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers_agci.experiments.position.measures import ResamplingConfig, measure
    from transformers_agci.experiments.position.tables import failing_positions

    lines = two_kinds(60)
    lost = [row for k, row in enumerate(lines) if k % 9 or k % 27 or row["answer"] == "No"]
    lost = unreadable(lost, "No", every=100)
    report = measure(read_results(write(tmp_path / "a.jsonl", lost)), ResamplingConfig(20))
    p = report.yes.failures.p
    assert 0 < p < 0.025 and len(failing_positions(report)) == 1
    assert "corrected for 2 tests" in failing_positions(report)[0]
    assert not failing_positions(report, results=int(0.05 / p) + 1)
    assert main(["evidence", str(tmp_path / "a.jsonl"), "--draws", "20"]) == 0
    assert "Rows of a fail at some positions more than at others (Yes rows: p" in capsys.readouterr().out


def test_a_plan_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(40)
    holes = [row for k, row in enumerate(lines) if row["answer"] == "No" or k // 9 < 8 or k % 9 != k // 9 % 9]
    assert main(["plan", write(tmp_path / "a.jsonl", holes), "--difference", "5"]) == 0
    out = capsys.readouterr().out
    assert "positions: from the 8 items with a Yes row in every cell" in out and "times as many" in out
    none = [row for k, row in enumerate(lines) if row["answer"] == "No" or k % 9 != k // 9 % 9]
    assert main(["plan", write(tmp_path / "b.jsonl", none), "--difference", "5"]) == 2
    assert "0 of 40 items of 'b' have a Yes row in every cell" in capsys.readouterr().err


def test_one_row_is_counted_in_the_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(12)
    bare = [row if k else {name: row[name] for name in row if name != "margin"} for k, row in enumerate(lines)]
    paths = [write(tmp_path / f"{k}.jsonl", content) for k, content in enumerate((bare, lines[:-1]))]
    assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
    out = capsys.readouterr().out
    assert "1 Yes row has no margin and is left out of" in out
    assert "1 row that only one of the two results has is left out." in out
    assert main(["evidence", paths[0], "--draws", "20"]) == 0
    assert "1 row of 0 has no margin and is left out" in capsys.readouterr().out


def test_a_nested_sweep_says_how_many_rows_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(60)
    paths = [write(tmp_path / f"{k}.jsonl", content) for k, content in enumerate((lines[5:], lines))]
    assert main(["sweep", *paths, "--nested"]) == 0
    assert "5 rows that not both results of a fold have are left out." in capsys.readouterr().out


def test_margins_on_one_answer_alone_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [row if row["answer"] == "Yes" else {k: row[k] for k in row if k != "margin"} for row in two_kinds(12)]
    assert main(["evidence", write(tmp_path / "a.jsonl", lines), "--draws", "20"]) == 0
    assert "Only the Yes rows of a have margins: no AUC and no calibration." in capsys.readouterr().out
