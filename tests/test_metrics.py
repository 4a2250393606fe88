"""The position probe's metrics: scoring rule, pairing, what is printed, drawn and concluded."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.comparison import compare, verdict
from transformers_agci.experiments.position.measures import ResamplingConfig, measure
from transformers_agci.experiments.position.metrics import evaluate, load, load_all
from transformers_agci.experiments.position.results import read_answer, read_results
from transformers_agci.statistics import evenness, thresholds

RESAMPLING = ResamplingConfig(200)


def result_rows(
    items: int, correct: Callable[..., Any], margin: bool = True, answers: tuple[str, str] = ("Yes", "No")
) -> list[dict[str, Any]]:
    """Rows of a result; `correct(item, answer, cell)` says whether the reply is right."""
    rows = []
    for item in range(items):
        for answer in answers:
            for cell, position in enumerate(POSITIONS):
                right = correct(item, answer, cell)
                said = answer if right else ("No" if answer == "Yes" else "Yes")
                row = {
                    "id": 9 * item + cell,
                    "image": f"{item:04d}_{cell}.jpg",
                    "caption": f"{answer} {item}",
                    "position": position,
                    "answer": answer,
                    "prediction": said,
                    "qs": "?",
                }
                if margin:
                    row["margin"] = 1.0 + 0.1 * cell if said == "Yes" else -1.0
                rows.append(row)
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def coin(p: float | Callable[..., Any], seed: int) -> Callable[..., Any]:
    """A reply that is right with probability p(cell), drawn per row."""
    draws = np.random.default_rng(seed).random((500, 2, 9))
    return lambda item, answer, cell: bool(draws[item, int(answer == "No"), cell] < (p(cell) if callable(p) else p))


@pytest.mark.parametrize(
    "reply, answer",
    [
        ("Yes", "Yes"),
        ("Yes.", "Yes"),
        ("Yes, there is", "Yes"),
        ("Yesterday", "Yes"),
        (" Yes\n", "Yes"),
        ("No", "No"),
        ("No, it is not", "No"),
        ("Nothing matches", "No"),
        ("yes", "Yes"),
        ("NO", "No"),
        ("yes, it is", "Yes"),
        ("no, not there", "No"),
        ("yes.", None),
        ("There is", None),
        ("", None),
        ("The answer is Yes", None),
    ],
)
def test_the_published_scoring_rule(reply: str, answer: str | None) -> None:
    assert read_answer(reply) == answer


def test_tables_of_a_result(tmp_path: Path) -> None:
    rows = result_rows(3, lambda item, answer, cell: not (item == 1 and cell == 4))
    rows[0]["prediction"] = "I cannot say"
    result = read_results(write(tmp_path / "a.jsonl", rows))
    assert result.items == ("0000", "0001", "0002") and result.label == "a"
    assert result.yes.correct[0, 0] == 0 and result.yes.unreadable[0, 0] == 1 and result.yes.said_yes[0, 0] == 0
    assert result.yes.correct[1, 4] == 0 and result.no.said_yes[1, 4] == 1
    assert result.yes.correct.sum() == 25 and result.no.correct.sum() == 26


def test_a_published_result_is_accepted(tmp_path: Path) -> None:
    """JSON Lines in a .json file, no logits, Yes rows only."""
    rows = result_rows(4, lambda *_: True, margin=False, answers=["Yes"])
    report = measure(read_results(write(tmp_path / "laion_answers.json", rows)), RESAMPLING)
    assert report.yes.accuracy.estimate == 1.0 and report.yes.accuracy.low < 1.0
    assert report.no is None and report.balanced is None and report.yes.margin is None


def test_files_that_are_named_otherwise_are_grouped_by_runs(tmp_path: Path) -> None:
    rows = result_rows(3, lambda item, answer, cell: True, answers=["Yes"])
    for number, row in enumerate(rows):
        row["image"] = f"picture-{number}.png"
    result = read_results(write(tmp_path / "a.jsonl", rows))
    assert result.items == ("picture-0.png", "picture-9.png", "picture-18.png")


def test_negatives_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    rows = result_rows(20, coin(0.8, 0))
    whole = read_results(write(tmp_path / "all.jsonl", rows))
    yes = write(tmp_path / "x.json", [row for row in rows if row["answer"] == "Yes"])
    no = write(tmp_path / "x_negatives.json", [row for row in rows if row["answer"] == "No"])
    parts = load([yes], [no])[0]
    assert measure(parts, RESAMPLING).balanced == measure(whole, RESAMPLING).balanced


def test_numbers_by_hand(tmp_path: Path) -> None:
    """Two items: 12 of 18 Yes rows right, 9 of 18 No rows."""
    result = read_results(
        write(
            tmp_path / "a.jsonl", result_rows(2, lambda item, answer, cell: cell < 6 if answer == "Yes" else item == 0)
        )
    )
    report = measure(result, RESAMPLING)
    assert report.yes.accuracy.estimate == pytest.approx(12 / 18)
    assert [cell.estimate for cell in report.yes.cells] == [1.0] * 6 + [0.0] * 3
    assert report.yes.spread.gap.observed == 1.0
    assert report.yes.spread.sd.observed == pytest.approx(np.std([1] * 6 + [0] * 3))
    assert report.balanced.estimate == pytest.approx((12 / 18 + 9 / 18) / 2)
    assert report.d_prime.estimate == pytest.approx(stats.norm.ppf(12.5 / 19) - stats.norm.ppf(9.5 / 19))
    assert [cell.estimate for cell in report.balanced_cells] == [0.75] * 6 + [0.25] * 3
    assert report.yes.margin_cells[0].estimate == pytest.approx(1.0)


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


def margin_rows(tables: dict[str, np.ndarray], margin: bool = True) -> list[Any]:
    """Rows of a result from margins {answer: [items, 9]}; NaN: no row."""
    return [
        {
            "image": f"{item:04d}_{cell}.jpg",
            "position": position,
            "answer": answer,
            "prediction": "Yes" if table[item, cell] > 0 else "No",
        }
        | ({"margin": float(table[item, cell])} if margin else {})
        for answer, table in tables.items()
        for item in range(len(table))
        for cell, position in enumerate(POSITIONS)
        if not np.isnan(table[item, cell])
    ]


def margins(items: int, bias: float, seed: int) -> dict[str, np.ndarray]:
    """Yes rows lean to No by `bias` per row of the grid; an item has much in common with itself."""
    rng = np.random.default_rng(seed)
    tables = {answer: 0.7 * rng.normal(size=(items, 1)) + 0.7 * rng.normal(size=(items, 9)) for answer in ("Yes", "No")}
    return {"Yes": tables["Yes"] + 1.3 + bias * np.repeat([1, 0, -1], 3), "No": tables["No"] - 1.3}


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
    tables["No"][:, 2:] = -1.0
    tables["No"][0, 2:] = 1.0
    with_margins = str(write(tmp_path / "with.jsonl", margin_rows(tables)))
    bare = str(write(tmp_path / "bare.jsonl", margin_rows(tables, margin=False)))
    reason = (
        "d' needs 3 right and 3 wrong answers of either kind in a cell, which 2 of 9 have, but some cell has 1 "
        "wrong on its No rows"
    )
    for paths, whose in (((with_margins, bare), "bare has no margins"), ((bare, bare), "there are no margins")):
        assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
        assert f"cannot be told ({whose}, and {reason})" in capsys.readouterr().out
    tables = margins(100, 0.4, seed=10)
    tables["No"][:, 3] = -1.0
    one_cell = str(write(tmp_path / "one_cell.jsonl", margin_rows(tables, margin=False)))
    assert main(["metrics", "--results_file", one_cell, one_cell, "--draws", "20"]) == 0
    assert "(no difference is shown in 8 of 9 cells; some cell has 0 wrong on its No rows)" in capsys.readouterr().out
    alone = str(write(tmp_path / "alone.jsonl", margin_rows({"Yes": tables["Yes"]}, margin=False)))
    assert main(["metrics", "--results_file", alone, alone, "--draws", "20"]) == 0
    assert "there are no margins, and accuracies of Yes rows alone move with" in capsys.readouterr().out


def test_one_row_is_counted_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.jsonl", result_rows(1, lambda *_: True)[:1])
    assert main(["metrics", "--results_file", str(one), "--draws", "20"]) == 0
    assert "1 item on a 3x3 grid, 1 Yes row\n" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [("Yes",), ("Yes", "No"), ("No",)])
def test_one_item_makes_whole_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: tuple[Any, ...]
) -> None:
    tables = [{answer: margins(1, 0, seed)[answer] for answer in answers} for seed in (11, 12)]
    paths = [str(write(tmp_path / f"{number}.jsonl", margin_rows(of_one))) for number, of_one in enumerate(tables)]
    for files in (paths, paths[:1] * 2):
        assert main(["metrics", "--results_file", *files, "--draws", "20"]) == 0
        sentence = capsys.readouterr().out.splitlines()[-1]
        assert sentence.startswith("On 1 item, ") and not re.search(r"[( ]-[ ,)]|nan", sentence), sentence
    if len(answers) == 2:
        assert ": whether balanced accuracy differs cannot be told; whether the Yes map" in sentence


@pytest.mark.parametrize(
    "files, lambdas, labels",
    [
        (["a.jsonl", "a.jsonl"], [0, 0], ["baseline (lambda 0), result 1", "baseline (lambda 0), result 2"]),
        (["a.jsonl", "b.jsonl"], [0, 0], ["baseline (lambda 0), a", "baseline (lambda 0), b"]),
        (["a.jsonl", "b.jsonl"], [0, 0.5], ["baseline (lambda 0)", "AGCI (lambda 0.5)"]),
        (["a.jsonl", "b.jsonl", "c.jsonl"], [0, 0.5, 0], None),
        (["x/a.jsonl", "y/a.jsonl"], [None, None], ["{}/x/a.jsonl", "{}/y/a.jsonl"]),
    ],
)
def test_results_are_called_by_what_they_are(
    tmp_path: Path, files: list[str], lambdas: list[Any], labels: list[str] | None
) -> None:
    rows = margin_rows({"Yes": margins(2, 0, 0)["Yes"]})
    for name, lam in zip(files, lambdas, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        path = write(tmp_path / name, rows)
        if lam is not None:
            path.with_suffix(".manifest.json").write_text(json.dumps({"settings": {"lambda": lam}}))
    labels = labels or ["baseline (lambda 0), a", "AGCI (lambda 0.5)", "baseline (lambda 0), c"]
    found = [result.label for result in load_all([tmp_path / name for name in files])]
    assert found == [label.format(tmp_path) for label in labels]


def test_results_of_several_models_are_called_by_the_model(tmp_path: Path) -> None:
    rows = margin_rows({"Yes": margins(2, 0, 0)["Yes"]})
    paths = []
    for folder, model in (("x", "models/one"), ("y", "hub/two"), ("z", "hub/two")):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "a.jsonl", rows))
        described = {"settings": {"lambda": 0}, "notes": {"model": model}}
        paths[-1].with_suffix(".manifest.json").write_text(json.dumps(described))
    assert [result.label for result in load_all(paths[:2])] == ["baseline (lambda 0), one", "baseline (lambda 0), two"]
    found = [result.label for result in load_all(paths)]
    assert found[0] == "baseline (lambda 0), one" and found[2] == f"baseline (lambda 0), two, {paths[2]}"


def test_the_unit_of_margins_is_one(tmp_path: Path) -> None:
    """The evenness of one result is what the comparison of two says about it, and so are Yes and No rows' units."""
    tables = margins(100, 0.4, seed=13)
    tables["No"] = 3 * tables["No"]
    result = read_results(write(tmp_path / "a.jsonl", margin_rows(tables)), label="a")
    report, pair = measure(result, RESAMPLING), compare(result, result)
    assert report.yes.margin_unevenness.estimate == pytest.approx(pair.evenness.margin.first, rel=1e-12)
    assert report.no.margin_unevenness.estimate == pytest.approx(pair.evenness.margin_no.first, rel=1e-12)
    pooled = np.mean([tables[answer].var(axis=0, ddof=1).mean() for answer in tables])
    plain = evenness.unevenness(tables["Yes"])
    assert report.yes.margin_unevenness.estimate == pytest.approx(plain / pooled, rel=0.1)


def test_rows_without_a_margin_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = margins(30, 0.2, seed=7)
    rows = margin_rows(tables)
    for row in rows[:7]:
        row["margin"] = float("nan")
    path = str(write(tmp_path / "a.jsonl", rows))
    assert main(["metrics", "--results_file", path, path, "--draws", "20"]) == 0
    out = capsys.readouterr().out
    assert "7 Yes rows have no margin and are left out" in out
    rows[3]["margin"] = float("inf")
    with pytest.raises(InputError, match=r'a\.jsonl:4: "margin" must be finite'):
        read_results(write(tmp_path / "a.jsonl", rows))


def test_failures_that_depend_on_the_position_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = result_rows(60, coin(0.8, 8))
    kept = [row for row in rows if row["position"] != "center" or int(row["image"][:4]) % 3]
    path = str(write(tmp_path / "a.jsonl", kept))
    report = measure(read_results(path), RESAMPLING)
    assert report.yes.missing_cells == [0, 0, 0, 0, 20, 0, 0, 0, 0] and report.yes.failures.p < 0.001
    assert main(["metrics", "--results_file", path, "--draws", "20"]) == 0
    assert "more than at others (Yes rows: p < 0.001, corrected for 2 tests)" in capsys.readouterr().out
    assert measure(read_results(write(tmp_path / "b.jsonl", rows)), RESAMPLING).yes.failures is None


def test_signal_detection_of_a_result(tmp_path: Path) -> None:
    result = read_results(write(tmp_path / "a.jsonl", margin_rows(margins(200, 0.0, seed=9))))
    report = measure(result, RESAMPLING)
    sd = np.sqrt(0.98)
    assert report.auc.estimate == pytest.approx(stats.norm.cdf(2.6 / sd / np.sqrt(2)), abs=0.02)
    assert report.criterion.low < 0 < report.criterion.high
    assert report.matched.accuracy.estimate == pytest.approx(stats.norm.cdf(2.6 / sd - stats.norm.ppf(0.9)), abs=0.04)
    assert report.best_threshold.balanced.estimate >= report.balanced.estimate
    assert len(report.auc_cells) == len(report.criterion_cells) == len(report.matched.cells) == 9


def test_rows_are_paired_by_item_not_by_place(tmp_path: Path) -> None:
    rows = result_rows(10, coin(0.7, 5))
    turned = [rows[18 * item + k] for item in reversed(range(10)) for k in range(18)]
    first, second = (read_results(write(tmp_path / f"{n}.jsonl", r)) for n, r in (("a", rows), ("b", turned)))
    assert compare(first, second).balanced.estimate == 0


def test_rows_that_only_one_result_has_are_counted(tmp_path: Path) -> None:
    rows = result_rows(5, coin(0.7, 6))
    first, second = (read_results(write(tmp_path / f"{n}.jsonl", r)) for n, r in (("a", rows), ("b", rows[:-20])))
    pair = compare(first, second)
    assert pair.left_out == 20 and pair.yes.accuracy.overall.n == 45 - 9
    other = read_results(write(tmp_path / "c.jsonl", [row | {"image": "z" + row["image"]} for row in rows]))
    with pytest.raises(InputError, match="no row in common"):
        compare(first, other)


def grid_rows(side: int) -> list[dict[str, Any]]:
    return [
        {
            "id": k,
            "image": f"a_{k}.jpg",
            "caption": "c",
            "grid": f"{side}x{side}",
            "row": k // side,
            "col": k % side,
            "answer": "Yes",
            "prediction": "Yes",
        }
        for k in range(side * side)
    ]


def test_other_grids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", grid_rows(4))
    assert main(["metrics", "--results_file", str(path), "--output_heatmap", str(tmp_path / "m.png")]) == 0
    assert "row 4, col 4" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"several: 4x4 .*, 3x3"):
        read_results(write(tmp_path / "b.jsonl", grid_rows(4) + result_rows(1, lambda *_: True)))
    with pytest.raises(InputError, match='"row" must be a whole number from 0 to 3, but is 4'):
        read_results(write(tmp_path / "c.jsonl", [grid_rows(4)[0] | {"row": 4}]))
    with pytest.raises(InputError, match='"grid" must be like "4x4"'):
        read_results(write(tmp_path / "d.jsonl", [grid_rows(4)[0] | {"grid": "four"}]))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"prediction": None}, r'a.jsonl:2: "prediction" must be a text, but is None'),
        ({"position": "middle"}, r'a.jsonl:2: "position" is \'middle\', but must be one of: top_left'),
        ({"answer": "maybe"}, r'a.jsonl:2: "answer" is \'maybe\''),
        ({"margin": "big"}, r'a.jsonl:2: "margin" must be a number'),
        ({"image": "0000_0.jpg", "position": "top_left"}, r"a.jsonl:2: .* is there already \(a.jsonl:1\)"),
    ],
)
def test_bad_result_rows_are_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    rows = result_rows(1, lambda *_: True)
    rows[1] |= change
    with pytest.raises(InputError, match=sentence):
        read_results(write(tmp_path / "a.jsonl", rows))
    del rows[1]["prediction"]
    with pytest.raises(InputError, match=r'a.jsonl:2: the field "prediction" is missing'):
        read_results(write(tmp_path / "a.jsonl", rows))


@pytest.fixture
def two_files(tmp_path: Path) -> list[str]:
    for name, lam, seed in (("A.lam0", 0.0, 1), ("A.lam0.5", 0.5, 2)):
        write(tmp_path / f"{name}.jsonl", result_rows(20, coin(0.85, seed)))
        (tmp_path / f"{name}.manifest.json").write_text(json.dumps({"settings": {"lambda": lam}}))
    return [str(tmp_path / f"{name}.jsonl") for name in ("A.lam0", "A.lam0.5")]


@pytest.mark.parametrize("flag", ["--results_file", "--result_file"])
def test_command_prints_draws_and_writes(
    two_files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    picture, numbers = tmp_path / "map.png", tmp_path / "out" / "numbers.json"
    code = main(
        [
            "metrics",
            flag,
            *two_files,
            "--output_heatmap",
            str(picture),
            "--json",
            str(numbers),
            "--draws",
            "100",
            "--text_only_file",
            two_files[0],
            "--blank_image_file",
            *two_files,
        ]
    )
    out = capsys.readouterr().out
    assert code == 0
    for words in (
        "accuracy, Yes rows",
        "accuracy, No rows",
        "balanced accuracy",
        "d' (log-linear)",
        "unreadable",
        "margin, Yes rows",
        "sd, Yes rows",
        "max - min",
        "by chance",
        "bottom_right",
        "McNemar p",
        "baseline (lambda 0)",
        "AGCI (lambda 0.5)",
        "text only",
        "blank image, AGCI (lambda 0.5)",
        str(picture),
    ):
        assert words in out, words
    content = json.loads(numbers.read_text())
    assert content["difference"]["verdict"] in out
    assert content["results"][0]["yes"]["cells"][0]["n"] == 20
    with Image.open(picture) as image:
        assert image.width > image.height > 800


def test_one_file_has_the_no_map_beside_the_yes_map(two_files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_agci.experiments.position import maps

    drawn = []
    monkeypatch.setattr(maps, "compose", lambda panels, *_: drawn.extend(panels))
    maps.probe_figure([measure(load(two_files[:1])[0], RESAMPLING)], None)
    assert [panel.title.split(":")[0] for panel in drawn[0]] == ["Yes rows", "No rows"]
    assert drawn[0][0].scale is drawn[0][1].scale


def test_two_files_share_a_scale_and_the_difference_is_centred(
    two_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.experiments.position import maps

    drawn = []
    monkeypatch.setattr(maps, "compose", lambda panels, *_: drawn.extend(panels))
    metrics = evaluate(load(two_files), resampling=RESAMPLING)
    maps.probe_figure(metrics.results, metrics.pair)
    for row in drawn:
        assert row[0].scale is row[1].scale and not row[0].scale.diverging
        assert row[2].scale.diverging and row[2].scale.low == -row[2].scale.high
        np.testing.assert_allclose(row[2].values, row[1].values - row[0].values)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--results_file", "nowhere.json"], "nowhere.json: there is no such file."),
        (["--results_file", "A", "A", "A", "--labels", "one", "two"], "needs one entry per result file (3), but has 2"),
        (["--results_file", "A", "--negatives_file", "A", "A"], "needs one entry per result file (1), but has 2"),
        (["--results_file", "A", "--draws", "0"], "--draws must be at least 1"),
        (["--results_file", "A", "--output_heatmap", "m.txt"], "cannot be drawn as '.txt'"),
        (["--results_file", "empty.jsonl"], "the file holds no rows"),
        (["--results_file", "A", "--json", "A/x.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(
    two_files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("A").symlink_to(two_files[0])
    Path("A.jsonl").symlink_to(two_files[0])
    words = ["A.jsonl" if word == "A" else word.replace("A/", "A.jsonl/") for word in words]
    assert main(["metrics", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_script_runs_from_any_folder(two_files: list[str], tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "scripts" / "metrics.py"
    done = subprocess.run(
        [sys.executable, script, "--result_file", two_files[0], "--draws", "10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "balanced accuracy" in done.stdout


def test_ties_at_a_threshold_count_in_part() -> None:
    """10 of 100 No rows lie above a threshold on the 20 that are 0: half of these, and half of the Yes rows there."""
    no = np.r_[np.full(80, -1.0), np.zeros(20)][:, None]
    yes = np.r_[np.zeros(50), np.ones(50)][:, None]
    found = thresholds.yes_accuracy_at_no_rate(yes, no)
    assert found.threshold == (0.0, 0.5)
    assert found.accuracy.overall.estimate == found.accuracy.cells[0].estimate == pytest.approx(0.75)
    assert found.accuracy.overall.low < 0.75 < found.accuracy.overall.high


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


def choice_rows(items: int, seed: int) -> list[Any]:
    """Choices between three options, whose right one stands in turn at each place."""
    rng = np.random.default_rng(seed)
    return [
        {"image": f"{item:04d}.jpg", "caption": f"cat {item}", "options": ["a", "b", "c"], "answer": "ABC"[place]}
        | {"grid": "1x3", "row": 0, "col": place, "margin": 0.5}
        | {"prediction": "ABC"[place if rng.random() < 0.8 else 0]}
        for item in range(items)
        for place in range(3)
    ]


def test_choices_are_not_called_yes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write(tmp_path / f"{seed}.jsonl", choice_rows(40, seed))) for seed in (1, 2)]
    heat = ["--output_heatmap", str(tmp_path / "map.svg")]
    commands = [
        ["metrics", "--results_file", paths[0], "--draws", "20", *heat],
        ["metrics", "--results_file", *paths, "--draws", "20", "--text_only_file", paths[0]],
        ["evidence", *paths, "--draws", "20"],
        ["plan", *paths, "--difference", "5"],
    ]
    for command in commands:
        assert main(command) == 0
        out = capsys.readouterr().out
        assert not re.search(r"\b(Yes|No) (rows?|map|%|\[)|Yes-rate|says Yes", out), out
        assert "choices" in out
    assert not re.search(r"(Yes|No) rows", (tmp_path / "map.svg").read_text())
    assert main([*commands[1]]) == 0
    out = capsys.readouterr().out
    assert "whether the map is more or less even cannot be told (choices have no margins" in out
    assert "120 choices" in out and "right without the image" in out
    assert main(["sweep", *paths]) == 2
    assert "is of choices between options" in capsys.readouterr().err
    assert main(["report", *paths, "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "choices, by the place of the right option" in page and not re.search(r">[^<]*\b(Yes|No) rows", page)
    mixed = write(
        tmp_path / "mixed.jsonl", [*choice_rows(2, 3), {**choice_rows(1, 4)[0], "options": None, "answer": "Yes"}]
    )
    with pytest.raises(InputError, match="some rows are choices between options"):
        read_results(mixed)


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
