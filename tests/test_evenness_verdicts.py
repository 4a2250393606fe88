"""What is concluded about evenness: from margins or answers, through a moved threshold, from few items."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import coin, margin_rows, margins, result_rows, write

from transformers_agci.cli import main
from transformers_agci.experiments.position.comparison import compare, verdict
from transformers_agci.experiments.position.results import read_results
from transformers_agci.statistics import thresholds


def test_two_equal_results_show_no_difference(tmp_path: Path) -> None:
    first = read_results(write(tmp_path / "a.jsonl", result_rows(30, coin(0.9, 1))), label="baseline")
    second = read_results(write(tmp_path / "b.jsonl", result_rows(30, coin(0.9, 1))), label="AGCI")
    pair = compare(first, second)
    assert pair.balanced.estimate == 0 and pair.balanced.low < 0 < pair.balanced.high
    assert verdict(pair).startswith("On 30 items, AGCI against baseline: no difference in balanced accuracy")
    assert pair.evenness.verdict == "no difference shown" and "no difference in evenness shown" in verdict(pair)


def test_the_verdict_follows_the_interval(tmp_path: Path) -> None:
    """The same words for noise, others for a true gain, a true loss, and a moved threshold."""
    low_at_the_bottom = lambda cell: 0.9 if cell < 6 else 0.6  # noqa: E731
    files = {
        "base": coin(low_at_the_bottom, 2),
        "noise": coin(low_at_the_bottom, 3),
        "gain": coin(0.92, 4),
        "yes": lambda item, answer, cell: answer == "Yes",
    }
    results = {
        name: read_results(write(tmp_path / f"{name}.jsonl", result_rows(150, correct, margin=False)), label=name)
        for name, correct in files.items()
    }
    noise = verdict(compare(results["base"], results["noise"]))
    assert "no difference in balanced accuracy" in noise and "no difference in evenness shown" in noise
    gain = verdict(compare(results["base"], results["gain"]))
    assert "balanced accuracy rises by" in gain and "the Yes map is more even" in gain
    loss = verdict(compare(results["gain"], results["base"]))
    assert "balanced accuracy falls by" in loss and "the Yes map is less even" in loss
    shift = verdict(compare(results["base"], results["yes"]))
    assert "the threshold moves: it says Yes more often (Yes rows +" in shift
    assert "cannot be told (there are no margins, and d' needs 3 right and 3 wrong answers of either kind" in shift
    assert "but some cell has 0 right on its No rows)" in shift
    for text in (noise, gain, loss, shift):
        assert text.endswith(".") and "\n" not in text


def evenness_of(
    tmp_path: Path, first: dict[str, np.ndarray], second: dict[str, np.ndarray], **options: Any
) -> dict[str, Any]:
    """The JSON that the command writes of two results given as margins."""
    paths = []
    for name, tables in (("a", first), ("b", second)):
        paths.append(str(write(tmp_path / f"{name}.jsonl", margin_rows(tables, **options))))
    out = tmp_path / "o.json"
    assert main(["metrics", "--results_file", *paths, "--json", str(out), "--draws", "20"]) == 0
    return json.loads(out.read_text())["difference"]["evenness"]


def test_a_moved_threshold_is_no_repair(tmp_path: Path) -> None:
    """Accuracies become far more even; margins, AUC and the threshold-matched baseline say that nothing happened."""
    before = margins(100, 0.4, seed=0)
    found = evenness_of(tmp_path, before, {answer: 2 * (table + 1) for answer, table in before.items()})
    assert found["verdict"] == "no difference shown"
    assert found["accuracy"]["high"] < 0
    for change in (found["margin"], found["auc"], *list(found["threshold_matched"].values())[1:]):
        assert change["estimate"] == pytest.approx(0, abs=1e-9)
        assert change["low"] < 0 < change["high"]
    assert found["threshold_matched"]["shift"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("before, after, said", [(0.4, 0.1, "more even"), (0.1, 0.4, "less even")])
def test_a_change_of_the_margins_is_found_through_a_moved_threshold(
    tmp_path: Path, before: float, after: float, said: str
) -> None:
    second = {answer: table - 0.8 for answer, table in margins(100, after, seed=2).items()}
    found = evenness_of(tmp_path, margins(100, before, seed=1), second)
    assert found["verdict"] == said
    assert np.sign(found["margin"]["estimate"]) == (-1 if said == "more even" else 1)
    assert found["margin"]["first"] == pytest.approx(before**2 * 2 / 3, abs=0.04)


def test_without_margins_the_verdict_needs_no_rows(tmp_path: Path) -> None:
    before, after = margins(200, 0.6, seed=3), margins(200, 0.0, seed=4)
    found = evenness_of(tmp_path, before, after, margin=False)
    assert found["verdict"] == "more even" and found["d_prime"]["high"] < 0
    assert found["margin"] is found["auc"] is found["threshold_matched"] is None
    alone = evenness_of(tmp_path, {"Yes": before["Yes"]}, {"Yes": after["Yes"]}, margin=False)
    assert alone["verdict"] == "cannot tell" and alone["d_prime"] is None and alone["accuracy"]["high"] < 0


@pytest.mark.parametrize("items", [1, 2, 5])
def test_few_items_allow_no_verdict(tmp_path: Path, items: int) -> None:
    found = evenness_of(tmp_path, margins(items, 1, seed=5), margins(items, 0, seed=6))
    assert found["verdict"] == "cannot tell"


def all_intervals(content: Any, path: Path = "") -> Iterator[Any]:
    """Every object with bounds in a JSON text."""
    if isinstance(content, dict):
        if "low" in content:
            yield path, content
        for name, value in content.items():
            yield from all_intervals(value, f"{path}.{name}")
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from all_intervals(value, f"{path}[{number}]")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("items", [1, 2, 40])
@pytest.mark.parametrize("answers", [("Yes", "No"), ("Yes",)])
@pytest.mark.parametrize("right", [True, False])
def test_no_interval_has_the_width_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], items: int, answers: tuple[Any, ...], right: bool
) -> None:
    """Everything right, or everything wrong, with margins that are all equal, and two equal results."""
    path = str(write(tmp_path / "a.jsonl", result_rows(items, lambda *_: right, answers=answers)))
    out = tmp_path / "o.json"
    assert main(["metrics", "--results_file", path, path, "--json", str(out), "--draws", "20"]) == 0
    found = list(all_intervals(json.loads(out.read_text())))
    assert len(found) > 20
    for name, interval in found:
        if interval["low"] is not None:
            assert interval["high"] - interval["low"] > 1e-6, name
    assert "nan" not in capsys.readouterr().out


def test_margins_that_order_every_row_leave_bounds_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The largest AUC and accuracy at a matched No rate: their intervals contain them and can be read off the text."""
    rng = np.random.default_rng(8)
    tables = {"Yes": 20 + rng.normal(size=(150, 9)), "No": -20 + rng.normal(size=(150, 9))}
    path, out = str(write(tmp_path / "a.jsonl", margin_rows(tables))), tmp_path / "o.json"
    assert main(["metrics", "--results_file", path, path, "--json", str(out), "--draws", "20"]) == 0
    found = json.loads(out.read_text())
    for name, interval in all_intervals(found):
        if interval["low"] is not None:
            assert interval["high"] - interval["low"] > 1e-12, name
            if "estimate" in interval:
                assert interval["low"] <= interval["estimate"] <= interval["high"], name
    result = found["results"][0]
    for interval in (result["auc"], result["matched"]["accuracy"]):
        assert interval["estimate"] == interval["high"] == 1.0
        assert interval["low"] == pytest.approx(150 / (150 + 1.96**2), abs=1e-3)
    assert result["matched"]["cells"][0]["low"] == pytest.approx(150 / (150 + 1.96**2), abs=1e-3)
    written = re.findall(r"\[([^,\]]+), ([^,\]]+)\]", capsys.readouterr().out)
    assert len(written) > 60 and all(low != high for low, high in written)


def test_a_constant_map_is_no_evidence_of_evenness(tmp_path: Path) -> None:
    """Every item answers alike: V varies by rounding only, and nothing can be told from that."""
    map_of = np.r_[0.3, np.linspace(0.7, 0.9, 8)]
    tables = {"Yes": np.tile(map_of, (60, 1)), "No": -np.tile(map_of[::-1], (60, 1))}
    found = evenness_of(tmp_path, tables, {answer: 1.1 * table for answer, table in tables.items()})
    assert found["verdict"] == "cannot tell"
    assert [found[name] for name in ("margin", "auc", "d_prime", "accuracy")] == [None] * 4


def test_the_verdict_says_whose_margins_are_missing_and_what_a_cell_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = margins(100, 0.4, seed=10)
    tables["Yes"][:, 2:] = 1.0
    tables["Yes"][0, 2:] = -1.0
    with_margins = str(write(tmp_path / "with.jsonl", margin_rows(tables)))
    bare = str(write(tmp_path / "bare.jsonl", margin_rows(tables, margin=False)))
    reason = (
        "d' needs 3 right and 3 wrong answers of either kind in a cell, which 2 of 9 have, but some cell has 1 "
        "wrong on its Yes rows"
    )
    for paths, whose in (((with_margins, bare), "bare has no margins"), ((bare, bare), "there are no margins")):
        assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
        assert f"cannot be told ({whose}, and {reason})" in capsys.readouterr().out
    tables = margins(100, 0.4, seed=10)
    tables["Yes"][:, 3] = 1.0
    one_cell = str(write(tmp_path / "one_cell.jsonl", margin_rows(tables, margin=False)))
    assert main(["metrics", "--results_file", one_cell, one_cell, "--draws", "20"]) == 0
    assert "(no difference is shown in 8 of 9 cells; some cell has 0 wrong on its Yes rows)" in capsys.readouterr().out
    alone = str(write(tmp_path / "alone.jsonl", margin_rows({"Yes": tables["Yes"]}, margin=False)))
    assert main(["metrics", "--results_file", alone, alone, "--draws", "20"]) == 0
    assert "there are no margins, and accuracies of Yes rows alone move with" in capsys.readouterr().out


def test_ties_at_a_threshold_count_in_part() -> None:
    """10 of 100 No rows lie above a threshold on the 20 that are 0: half of these, and half of the Yes rows there."""
    no = np.r_[np.full(80, -1.0), np.zeros(20)][:, None]
    yes = np.r_[np.zeros(50), np.ones(50)][:, None]
    found = thresholds.yes_accuracy_at_no_rate(yes, no)
    assert found.threshold == (0.0, 0.5)
    assert found.accuracy.overall.estimate == found.accuracy.cells[0].estimate == pytest.approx(0.75)
    assert found.accuracy.overall.low < 0.75 < found.accuracy.overall.high


def test_a_gap_at_the_threshold_does_not_make_an_interval_from_nothing_to_everything() -> None:
    """No margin lies near the threshold: 18 of 20 items far below it, two above. Its density there is nearly zero."""
    rng = np.random.default_rng(0)
    no = np.r_[np.full(18, -6.0), 1.0, 2.0][:, None] + 0.01 * rng.normal(size=(20, 9))
    yes = np.r_[-7.0, -6.0, np.full(18, 3.0)][:, None] + 0.01 * rng.normal(size=(20, 9))
    found = thresholds.yes_accuracy_at_no_rate(yes, no).accuracy
    for interval in (found.overall, *found.cells):
        assert interval.estimate == 0.9 and 0.4 < interval.low < 0.8 and 0.95 < interval.high < 1


def test_a_threshold_in_a_gap_is_as_unsure_as_another() -> None:
    """What an item adds to the wanted share it adds to the share of all rows, whether margins lie near or not."""
    rng = np.random.default_rng(0)
    yes = np.r_[-7.0, -6.0, np.full(18, 3.0)][:, None] + 0.01 * rng.normal(size=(20, 9))
    no = np.r_[np.full(18, -6.0), 1.0, 2.0][:, None] + 0.01 * rng.normal(size=(20, 9))
    drift = rng.normal(size=20)
    threshold = thresholds.threshold_for_count([yes, no], int((yes > 0).sum() + (no > 0).sum()))
    moved, still = (
        np.concatenate([thresholds.at_threshold(table, threshold, d, [yes, no]) for table in (yes, no)], axis=1)
        for d in (drift, 0 * drift)
    )
    assert (moved - still).mean(axis=1) == pytest.approx(drift)


def test_the_matched_baseline_says_yes_as_often_where_margins_are_tied(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    coarse = {name: np.round(2 * table) / 2 for name, table in margins(60, 0.3, seed=3).items()}
    moved = {name: table + 0.3 + 0.1 * rng.normal(size=table.shape) for name, table in coarse.items()}
    paths = [write(tmp_path / f"{k}.jsonl", margin_rows(tables)) for k, tables in enumerate((coarse, moved))]
    first, second = (read_results(path) for path in paths)
    matched = compare(first, second).evenness.threshold_matched
    said = np.mean([second.yes.said_yes.mean(), second.no.said_yes.mean()])
    threshold = thresholds.threshold_for_count([first.yes.margin, first.no.margin], 2 * 540 * said)
    shares = [float(threshold.above(t.margin).mean()) for t in (first.yes, first.no)]
    assert 0 < threshold.part < 1 and np.mean(shares) == pytest.approx(said)
    assert matched.balanced.first == pytest.approx((shares[0] + 1 - shares[1]) / 2)


def test_the_best_threshold_says_that_it_was_chosen_on_these_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "a.jsonl", margin_rows(margins(30, 0.2, seed=7))))
    assert main(["metrics", "--results_file", path, "--draws", "20"]) == 0
    out = capsys.readouterr().out
    assert "), chosen on these rows" in out and "its interval takes the threshold as given" in out


def test_the_matched_baseline_reads_both_results_by_their_margins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unreadable replies cost a result nothing against itself, and are no Yes that was said less often."""
    whole = margin_rows(margins(40, 0.3, seed=3))
    blurred = [
        {**row, "prediction": "unclear"} if row["prediction"] == "No" and number % 3 else row
        for number, row in enumerate(whole)
    ]
    first, second = (read_results(write(tmp_path / f"{k}.jsonl", r)) for k, r in enumerate((whole, blurred)))
    pair = compare(first, second)
    balanced = pair.evenness.threshold_matched.balanced
    assert balanced.first == pytest.approx(balanced.second) and balanced.estimate == pytest.approx(0)
    assert pair.balanced.high < 0 and "the threshold moves" not in verdict(pair)
    assert balanced.second == pytest.approx(((first.yes.margin > 0).mean() + 1 - (first.no.margin > 0).mean()) / 2)
