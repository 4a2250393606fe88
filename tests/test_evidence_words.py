"""What is said of results with missing rows, few items, other negatives, or one kind of rows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_rows import margins, rows, write

from transformers_agci.cli import main
from transformers_agci.experiments.position.comparison import compare
from transformers_agci.experiments.position.evidence import gather
from transformers_agci.experiments.position.evidence_report import figure_panels
from transformers_agci.experiments.position.metrics import load_controls
from transformers_agci.experiments.position.results import read_results
from transformers_agci.statistics import regression

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
    table = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert table[1].split()[1] not in ("-", "a") and "position effect on margins, p" in table[0]
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
    named = f"'0' ({paths[0]}) and '1' ({paths[1]})"
    assert f"{named} have other negatives: the No rows of i000 ask about" in capsys.readouterr().err
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
    assert f"0 of 40 items of 'b' ({tmp_path / 'b.jsonl'}) have a Yes row in every cell" in capsys.readouterr().err


def test_one_row_is_counted_in_the_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(12)
    bare = [row if k else {name: row[name] for name in row if name != "margin"} for k, row in enumerate(lines)]
    paths = [write(tmp_path / f"{k}.jsonl", content) for k, content in enumerate((bare, lines[:-1]))]
    assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
    out = capsys.readouterr().out
    assert "1 Yes row has no margin and is left out of" in out
    assert "\non the 215 rows that both have; 1 row that only one of the two results has is left out.\n\ndiff" in out
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


def test_an_unreadable_reply_is_no_evidence_of_a_correct_rejection(tmp_path: Path) -> None:
    """d' and c of a result a third of whose No replies are unreadable are those of the other two thirds."""
    from transformers_agci.experiments.position.measures import ResamplingConfig, measure

    lines = two_kinds(30)
    blurred = unreadable(lines, "No")
    kept = [row for row in blurred if row["prediction"] != "Unclear"]
    whole, part, clear = (
        measure(read_results(write(tmp_path / f"{k}.jsonl", content)), ResamplingConfig(20))
        for k, content in enumerate((lines, blurred, kept))
    )
    assert part.d_prime == clear.d_prime and part.criterion == clear.criterion
    assert part.d_prime.n == 2 * whole.d_prime.n * 5 // 12 and part.d_prime_cells == clear.d_prime_cells
    assert part.no.accuracy.estimate == pytest.approx(2 / 3 * clear.no.accuracy.estimate)
    every = measure(read_results(write(tmp_path / "e.jsonl", unreadable(lines, "No", every=1))), ResamplingConfig(20))
    assert np.isnan(every.d_prime.estimate) and every.no.accuracy.estimate == 0


def test_unreadable_replies_change_no_difference_of_what_was_said(tmp_path: Path) -> None:
    """Two results that say the same where both are readable differ in no d', c, V of d' or threshold."""
    lines = [{k: v for k, v in row.items() if k != "margin"} for row in two_kinds(200)]
    blurred = unreadable(unreadable(lines, "No"), "Yes", every=7)
    results = [read_results(write(tmp_path / f"{k}.jsonl", content)) for k, content in enumerate((lines, blurred))]
    for first, second in (results, results[::-1]):
        pair = compare(first, second)
        assert pair.d_prime.estimate == pair.criterion.estimate == pair.evenness.d_prime.estimate == 0
        assert pair.yes.said_yes.estimate == pair.no.said_yes.estimate == 0
        assert "the threshold moves" not in pair.verdict and pair.balanced.excludes(0)


def test_unreadable_replies_are_counted_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(40)
    paths = [write(tmp_path / f"{k}.jsonl", content) for k, content in enumerate((lines, unreadable(lines, "No")))]
    sentence = (
        "120 of 720 replies of 1 are neither Yes nor No: accuracies count them as wrong; d', c, V of d', lambda x "
        "truth and the shares of Yes leave them out, in both of two results."
    )
    for command in (["metrics", "--results_file"], ["evidence"], ["sweep"]):
        draws = ["--draws", "20"] if command[0] != "sweep" else []
        assert main([*command, *paths, *draws]) == 0
        assert capsys.readouterr().out.count(sentence) == 1, command
    assert main(["sweep", "--nested", *paths]) == 0  # which shows balanced accuracy alone
    out = capsys.readouterr().out
    assert "120 of 720 replies of 1 are neither Yes nor No: accuracies count them as wrong." in out and "d'" not in out
    one = write(tmp_path / "one.jsonl", unreadable(lines, "Yes", every=1000))
    assert main(["metrics", "--results_file", one, "--draws", "20"]) == 0
    assert "1 of 720 replies of one is neither Yes nor No: accuracies count it as wrong; d'" in capsys.readouterr().out
    yes = [row for row in unreadable(lines, "Yes", every=1000) if row["answer"] == "Yes"]
    assert main(["metrics", "--results_file", write(tmp_path / "yes.jsonl", yes), "--draws", "20"]) == 0
    assert "1 of 360 replies of yes is neither Yes nor No: accuracies count it as wrong." in capsys.readouterr().out


def test_the_controls_leave_unreadable_replies_out_of_the_shares_of_yes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shares are those of the readable replies, and one sentence counts the others."""
    lines = two_kinds(30)
    blurred = unreadable(unreadable(lines, "Yes"), "No", every=2)
    kept = [row for row in blurred if row["prediction"] != "Unclear"]
    paths = [write(tmp_path / f"{k}.jsonl", content) for k, content in enumerate((blurred, kept))]
    (control,), (clear,) = (load_controls([path]) for path in paths)
    assert (control.yes_rate, control.no_rate) == (clear.yes_rate, clear.no_rate)
    assert control.yes_rate.n == 180 and control.no_rate.n == 135
    said = "225 of 540 replies of text only are neither Yes nor No: the shares of Yes leave them out."
    assert control.notes == (said,) and not clear.notes
    for command in (["metrics", "--results_file"], ["evidence"]):
        assert main([*command, paths[1], "--draws", "20", "--text_only_file", paths[0]]) == 0
        assert said in capsys.readouterr().out


def test_a_threshold_that_only_seems_to_move_is_not_said_to(tmp_path: Path) -> None:
    """More Yes on Yes rows, and unreadable replies where the No rows had a Yes or a No."""
    lines = two_kinds(100)
    replies = {"Yes": lambda m: "Yes" if m > -0.5 else "No", "No": lambda m: "Yes" if m > 0.9 else "No"}
    moved = [
        row | {"prediction": "Hm" if row["answer"] == "No" and abs(row["margin"]) < 0.9 else said}
        for row in lines
        for said in [replies[row["answer"]](row["margin"])]
    ]
    first, second = (read_results(write(tmp_path / f"{k}.jsonl", each)) for k, each in enumerate((lines, moved)))
    pair = compare(first, second)
    assert pair.yes.said_yes.low > 0 and pair.no.accuracy.overall.high < 0
    assert "the threshold moves" not in pair.verdict


def test_lambda_by_position_says_where_items_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    paths = [
        write(tmp_path / f"{k}.jsonl", rows(rng.choice([-1.0, 1.0], (9, 9)), rng.choice([-1.0, 1.0], (9, 9))))
        for k in (0, 1)
    ]
    assert main(["evidence", *paths, "--draws", "20"]) == 0
    out = capsys.readouterr().out
    assert "lambda x position is not tested for 1: " in out and "is tested on shares" not in out


def test_a_sweep_by_evenness_needs_margins_that_vary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = [row | {"margin": 1.0 if row["prediction"] == "Yes" else -1.0} for row in two_kinds(40)]
    all_alike = [row | {"margin": 1.0, "prediction": "Yes"} for row in flat]
    paths = [write(tmp_path / f"{k}.jsonl", all_alike) for k in (0, 1)]
    for more in ([], ["--nested"]):
        assert main(["sweep", *paths, "--choose_by", "evenness", *more]) == 2
        error = capsys.readouterr()
        assert "has no variance of the margins over the cells" in error.err and "inf" not in error.out


def test_balanced_accuracy_at_the_same_yes_rate_is_a_mean_over_rows(tmp_path: Path) -> None:
    """As every other balanced accuracy is: cells with fewer rows count less."""
    lines = [row for k, row in enumerate(two_kinds(40)) if row["position"] != "top_left" or k % 4]
    first = read_results(write(tmp_path / "a.jsonl", lines))
    shifted = [row | {"margin": row["margin"] + 0.4} for row in lines]
    second = read_results(
        write(tmp_path / "b.jsonl", [row | {"prediction": "Yes" if row["margin"] > 0 else "No"} for row in shifted])
    )
    pair = compare(first, second)
    over_rows = (np.nanmean(second.yes.correct) + np.nanmean(second.no.correct)) / 2
    over_cells = np.mean([np.nanmean(t.correct, axis=0).mean() for t in (second.yes, second.no)])
    assert pair.evenness.threshold_matched.balanced.second == pytest.approx(over_rows, abs=1e-12)
    assert abs(over_rows - over_cells) > 1e-4


def answers_only(folder: Path, *tables: tuple[np.ndarray, np.ndarray]) -> list[str]:
    return [str(write(folder / f"{k}.jsonl", rows(*pair, margin=False))) for k, pair in enumerate(tables)]


def test_cells_with_too_few_false_alarms_have_no_d_prime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One rate for all cells would stand for a threshold that may lean: nothing so few rows say rules that out."""
    yes, no = margins(300, 10, bias=0.7), margins(300, 11, mean=-1.3)
    moved = yes - yes.mean(axis=0) + yes.mean() - 1.2, no - 1.2
    paths = answers_only(tmp_path, (yes, no), moved)
    assert min((moved[1] > 0).sum(axis=0)) < 3
    found = compare(*map(read_results, paths)).evenness
    assert found.verdict == "cannot tell" and found.d_prime is None
    assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
    out = capsys.readouterr().out
    assert "d' needs 3 right and 3 wrong answers of either kind in a cell, which " in out
    assert re.search(r"d' of the cells \([0-8] of 9 have one: too few\) +- +- +-\n", out)


@pytest.mark.slow
def test_a_change_hidden_behind_a_moved_threshold_is_not_said_to_be_none(tmp_path: Path) -> None:
    """An equal bias and a moved threshold: no change is shown by d'; by margins of another shape there is one."""
    lean = np.repeat([0.35, 0.0, -0.35], 3)
    yes, no = margins(300, 22, mean=1.0) + lean, margins(300, 23, mean=-1.6)
    found = compare(*map(read_results, answers_only(tmp_path, (yes, no), (yes - 0.3, no - 0.3)))).evenness
    assert found.verdict == "no difference shown"
    assert found.reason.endswith("the threshold moved, and without margins a change could hide in their shape")


@pytest.mark.slow
def test_tables_and_figures_name_the_measure_and_the_cells_behind_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no = margins(300, 25, mean=-1.0) + np.repeat([0.6, 0.0, -0.6], 3)
    yes = margins(300, 24, mean=1.0)
    yes[:, 4] = 3.0  # nobody errs in the middle
    with_margins = [str(write(tmp_path / f"m{k}.jsonl", rows(yes + 0.1 * k, no))) for k in (0, 1)]
    paths = answers_only(tmp_path, (yes, no), (yes + 0.1, no))
    for given, panel in ((paths, "variance of d' over cells,\nagainst"), (with_margins, "variance of margins over")):
        found = gather([read_results(path) for path in given])
        names = [name for name, _ in figure_panels(found) if name.startswith("variance")]
        assert len(names) == 1 and names[0].startswith(panel)
    assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
    assert re.search(r"d' of the cells \(8 of 9\) +\d", capsys.readouterr().out)
    assert main(["evidence", *paths, "--draws", "20"]) == 0
    assert re.search(r"\[[-+.\d]+, [-+.\d]+\] \(8 of 9\)", capsys.readouterr().out)


@pytest.mark.parametrize("margin", [True, False])
def test_a_threshold_that_leans_with_the_place_does_not_move_d_prime_of_the_cells(tmp_path: Path, margin: bool) -> None:
    """Every cell's true d' is 2.9 in both results; in the first Yes is said more often in the upper rows.

    By the margins of Yes rows such a lean is unevenness; from answers alone d' of the cells is compared.
    """
    lean = np.repeat([0.6, 0.0, -0.6], 3)
    sides = [[margins(300, seed + by, mean=mean) for mean in (1.0, -1.9)] for by, seed in enumerate((20, 30))]
    tables = [(sides[0][0] + lean, sides[0][1] + lean), sides[1]]
    paths = [write(tmp_path / f"{k}.jsonl", rows(*pair, margin=margin)) for k, pair in enumerate(tables)]
    first, second = (read_results(path) for path in paths)
    found = compare(first, second).evenness
    assert found.d_prime is None or found.d_prime.low < 0 < found.d_prime.high
    assert (found.verdict == "more even") == margin and found.verdict != "less even"


def test_balanced_accuracies_of_two_items_differ_by_a_hundred_points_at_most(tmp_path: Path) -> None:
    yes, no = margins(2, 5, mean=0.3), margins(2, 6, mean=-0.3)
    first, second = (
        read_results(write(tmp_path / f"{k}.jsonl", rows(yes + by, no - by))) for k, by in enumerate((0.0, 0.5))
    )
    balanced = compare(first, second).evenness.threshold_matched.balanced
    assert -1 <= balanced.low < balanced.estimate < balanced.high <= 1
    assert balanced.high - balanced.low > 1


def at_lambda(path: Path, lam: float, content: list[dict[str, Any]]) -> str:
    """A result with a manifest beside it that tells its lambda."""
    settings = {"method": "agci", "lambda": lam}
    path.with_suffix(".manifest.json").write_text(json.dumps({"settings": settings}))
    return write(path, content)


def test_stock_that_is_not_the_first_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = two_kinds(40)
    stock, quarter, half = (at_lambda(tmp_path / f"b{lam}.jsonl", lam, lines) for lam in (0, 0.25, 0.5))
    line = (
        f"'AGCI (lambda 0.5)' ({half}) is first and taken as the baseline, but 'baseline (lambda 0)' ({stock}) is "
        "stock, at lambda 0."
    )
    assert main(["sweep", half, stock, quarter]) == 2
    assert f"{line} Give that one first: what is chosen is held against the first." in capsys.readouterr().err
    for words in (["metrics", "--results_file", half, stock], ["evidence", half, quarter, stock]):
        assert main([*words, "--draws", "20"]) == 0
        assert capsys.readouterr().out.count(line) == 1
    for words in (["metrics", "--results_file", half, quarter], ["evidence", stock, half], ["sweep", stock, half]):
        assert main(words if words[0] == "sweep" else [*words, "--draws", "20"]) == 0
        assert "taken as the baseline" not in capsys.readouterr().out


def test_why_lambda_by_position_is_not_tested() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 9, 9)).astype(float)
    assert regression.why_untested(first, second) == "9 items have rows of both, and 10 are needed"
    alike = np.repeat(rng.integers(0, 2, (40, 1)), 9, axis=1).astype(float)
    assert regression.method_by_position(alike, 1 - alike) is None
    assert regression.why_untested(alike, 1 - alike) == "some cells change alike in every item"
