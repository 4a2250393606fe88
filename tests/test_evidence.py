"""agci evidence and metrics: several results at once, their tables, figures and what they say."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evidence_rows
import numpy as np
import pytest
from evidence_rows import margins, rows, write
from PIL import Image
from scipy import stats

from transformers_agci import statistics as st
from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.experiments.position.comparison import compare

three = evidence_rows.three  # fixture


def test_everything_in_one_table_one_figure_and_one_file(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figure = tmp_path / "o" / "e.json", tmp_path / "e.png"
    words = ["--json", str(out), "--output_figure", str(figure), "--margin", "3", "--draws", "50"]
    assert main(["evidence", *three, *words, "--text_only_file", three[0]]) == 0
    text = capsys.readouterr().out
    for word in (
        "3 results on the same 80 items",
        "sd of margins over cells",
        "all Yes rows right, % of items",
        "Brier",
        "lambda x position",
        "lambda x truth",
        "within 3 points",
        "balanced at the same Yes-rate",
        "V of AUC",
        "cells that differ (McNemar, Holm)",
        "position effect on margins, p",
        "Hotelling's T^2, margins, p",
        "failures by position, p",
        "for all 10 tests",
        "text only",
    ):
        assert word in text, word
    assert max(len(line) for line in text.splitlines() if "  " in line) <= 120  # tables, not sentences
    found = json.loads(out.read_text())
    moved, repaired = found["comparisons"]
    assert moved["pair"]["evenness"]["verdict"] == "no difference shown"
    assert repaired["pair"]["evenness"]["verdict"] == "more even"
    assert moved["holm"]["threshold"] < 0.001 and moved["holm"]["AUC"] == 1.0
    assert repaired["holm"]["evenness"] < 0.01 and repaired["tests"]["evenness"] < repaired["holm"]["evenness"]
    flat = [p for comparison in found["comparisons"] for p in comparison["tests"].values()]
    assert [p for c in found["comparisons"] for p in c["holm"].values()] == pytest.approx(st.holm(flat))
    assert len(found["results"][0]["calibration"]["cells"]) == 9
    curve = found["results"][0]["calibration"]["curve"]
    assert sum(of_bin["share"]["n"] for of_bin in curve) == 2 * 80 * 9
    assert all(a["probability"] < b["probability"] for a, b in itertools.pairwise(curve))
    assert all(of_bin["share"]["low"] < of_bin["share"]["high"] for of_bin in curve)
    assert (found["results"][0]["roc"]["hits"][0], found["results"][0]["roc"]["hits"][-1]) == (0, 1)
    with Image.open(figure) as image:
        assert image.width > image.height > 300


@pytest.fixture
def sweep_of_lambdas(three: list[str]) -> list[str]:
    for path, lam in zip(three, (0, 0.25, 0.5)):
        Path(path).with_suffix(".manifest.json").write_text(json.dumps({"settings": {"lambda": lam, "method": "agci"}}))
    return three


def test_metrics_take_any_number_of_results(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.experiments.position import maps
    from transformers_agci.report import heatmap

    drawn = []
    monkeypatch.setattr(maps, "compose", lambda panels, *_: drawn.extend(panels))
    monkeypatch.setattr(heatmap, "write_figure", lambda *_: None)
    out = tmp_path / "m.json"
    words = ["--json", str(out), "--output_heatmap", str(tmp_path / "m.png"), "--draws", "50"]
    assert main(["metrics", "--results_file", *three, *words]) == 0
    said = capsys.readouterr().out
    assert "3 results on the same 80 items" in said and "for all 10 tests" in said
    assert len(json.loads(out.read_text())["results"]) == 3
    assert [len(row) for row in drawn] == [3, 3]
    assert len({panel.scale for row in drawn for panel in row}) == 1


def test_a_curve_over_lambda(
    sweep_of_lambdas: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.experiments.position import curve

    lines = []
    real = curve._draw_points
    monkeypatch.setattr(curve, "_draw_points", lambda axes, *data: lines.append(data) or real(axes, *data))
    target = tmp_path / "curve.png"
    assert main(["evidence", *sweep_of_lambdas, "--output_curve", str(target), "--draws", "50"]) == 0
    assert f"curve over lambda: {target}" in capsys.readouterr().out
    assert len(lines) == 6 and all(lambdas == [0.0, 0.25, 0.5] for lambdas, _ in lines)
    yes = [point.estimate for point in lines[0][1]]
    assert yes[0] < yes[1]  # the moved threshold says Yes more often
    with Image.open(target) as image:
        assert image.width > image.height > 300


def test_what_is_no_curve_is_refused(
    sweep_of_lambdas: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = sweep_of_lambdas
    words = ["--output_curve", str(tmp_path / "c.png"), "--draws", "50"]
    assert main(["evidence", first, second, second, *words]) == 2
    said = capsys.readouterr().err
    assert "one result per lambda, all of one method" in said and said.count("r1.jsonl (lambda 0.25)") == 2
    for number in ("Infinity", "NaN", "1" + 400 * "0"):
        Path(third).with_suffix(".manifest.json").write_text(f'{{"settings": {{"lambda": {number}}}}}')
        assert main(["evidence", first, second, third, *words]) == 2
        assert "r2.jsonl: no manifest beside it says its lambda" in capsys.readouterr().err
    Path(third).with_suffix(".manifest.json").unlink()
    assert main(["evidence", first, second, third, *words]) == 2
    assert "r2.jsonl: no manifest beside it says its lambda" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evidence", "sweep"])
def test_figures_that_cannot_be_written_are_one_sentence(
    command: str, three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--draws", "50"] if command == "evidence" else []
    assert main([command, *three, "--json", f"{three[0]}/x.json", *words]) == 2
    said = capsys.readouterr().err
    assert "r0.jsonl/x.json' cannot be written: " in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "other, words, sentence",
    [
        (
            lambda: rows(margins(79, 0), margins(79, 1)),
            [],
            "x.jsonl) are not of the same items: 1 item is in one of them only",
        ),
        (lambda: rows(margins(80, 0)), [], "has No rows; give the results on the negatives of both, or of none"),
        (lambda: rows(margins(80, 0, cells=4), shape=(2, 2)), [], "3x3 grid and"),
        (lambda: rows(margins(80, 0), margins(80, 1)), ["--margin", "0"], "--margin must lie between 0 and 100 points"),
        (
            lambda: rows(margins(80, 0), margins(80, 1)),
            ["--labels", "a"],
            "--labels needs one entry per result file (2)",
        ),
    ],
)
def test_results_that_do_not_belong_together(
    three: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: Callable[..., Any],
    words: list[Any],
    sentence: str,
) -> None:
    assert main(["evidence", three[0], write(tmp_path / "x.jsonl", other()), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_what_cannot_be_had_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = write(tmp_path / "right.jsonl", rows(np.ones((40, 9)), -np.ones((40, 9)), margin=False))
    other = write(tmp_path / "other.jsonl", rows(margins(40, 6), margins(40, 7, mean=-1.3), margin=False))
    out, labels = tmp_path / "e.json", ["--labels", "right", "other", "again"]
    assert main(["evidence", right, other, right, *labels, "--json", str(out), "--draws", "20"]) == 0
    text = capsys.readouterr().out
    assert "Every answer of right is right: only margins can differ between its positions." in text
    assert "No margins in right, other, again" in text and "lambda x position is not tested for again" in text
    assert "No equivalence is tested, because no margin was stated" in text and "nan" not in text
    found = json.loads(out.read_text())

    def bounds(content: Any) -> Iterator[Any]:
        if isinstance(content, dict):
            if content.get("low") is not None:
                yield content["low"], content["high"]
            for value in content.values():
                yield from bounds(value)
        elif isinstance(content, list):
            for value in content:
                yield from bounds(value)

    widths = [high - low for low, high in bounds(found)]
    assert len(widths) > 50 and min(widths) > 1e-6
    one = write(tmp_path / "one.jsonl", rows(margins(1, 8), margins(1, 9)))
    assert main(["evidence", one, one]) == 2
    assert "has one item: nothing can be tested on it" in capsys.readouterr().err


@pytest.mark.parametrize("planted", [0.0, 0.3])
def test_two_engines_differ_where_one_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: float
) -> None:
    """Rounding everywhere, and a change at one position: that one is found, by its margins, and no other."""
    yes, no = margins(60, 0), margins(60, 1, mean=-1.3)
    noise = np.random.default_rng(2)
    others = [table + 1e-5 * noise.normal(size=table.shape) for table in (yes, no)]
    others[0][:, 8] += planted * noise.uniform(0.5, 1.5, len(yes))
    first, second = write(tmp_path / "a.jsonl", rows(yes, no)), write(tmp_path / "b.jsonl", rows(*others))
    out = tmp_path / "e.json"
    assert main(["evidence", first, second, "--draws", "20", "--json", str(out)]) == 0
    assert "by position (paired)" in capsys.readouterr().out
    (comparison,) = json.loads(out.read_text())["comparisons"]
    found = {side: comparison["pair"][side]["margin_cells"] for side in ("yes", "no")}
    shown = [(side, POSITIONS[cell]) for side, values in found.items() for cell, p in enumerate(values) if p < 0.05]
    assert shown == ([("yes", "bottom_right")] if planted else [])
    assert comparison["pair"]["yes"]["margin"]["cells"][8]["estimate"] == pytest.approx(planted, abs=0.05)


def test_results_that_are_equal_have_no_p(three: list[str], tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    assert main(["evidence", three[0], three[0], "--draws", "20", "--json", str(out)]) == 0
    (comparison,) = json.loads(out.read_text())["comparisons"]
    assert comparison["pair"]["no"]["margin_cells"] == [None] * 9
    assert comparison["pair"]["no"]["holm_cells"] == [1.0] * 9


def test_items_are_counted_by_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Yes rows on 30 items, No rows on 12 others: t has 11 degrees of freedom where both count, and 29 of Yes rows."""
    from transformers_agci.experiments.position.evidence import gather
    from transformers_agci.experiments.position.results import read_results

    def result(name: str, seed: int) -> str:
        yes, no = np.full((42, 9), np.nan), np.full((42, 9), np.nan)
        yes[:30], no[30:] = margins(30, seed, bias=0.3), margins(12, seed + 50, mean=-1.0)
        return write(tmp_path / name, rows(yes, no))

    paths = [result("a.jsonl", 1), result("b.jsonl", 2)]
    evidence = gather([read_results(path, label=Path(path).stem) for path in paths], margin=0.05)
    (comparison,) = evidence.comparisons
    pair = comparison.pair
    assert (pair.items, pair.yes.items, pair.no.items, pair.freedom) == (42, 30, 12, 11)
    assert [row.report.yes.margin_unevenness.n for row in evidence.results] == [30, 30]
    half = (pair.balanced.high - pair.balanced.low) / 2
    p = 2 * stats.t.sf(abs(pair.balanced.estimate) / half * stats.t.ppf(0.975, 11), 11)
    assert comparison.tests["balanced accuracy"] == pytest.approx(p)
    alone = [read_results(write(tmp_path / f"yes_{k}.jsonl", rows(margins(30, k, bias=0.3)))) for k in (1, 2)]
    assert pair.evenness.accuracy == pytest.approx(compare(*alone).evenness.accuracy)
    assert main(["metrics", "--results_file", *paths, "--draws", "20"]) == 0
    assert "On 30 items with Yes rows and 12 items with No rows, b against a" in capsys.readouterr().out
    few = [read_results(write(tmp_path / f"{k}.jsonl", rows(margins(30, k), margins(5, k)))) for k in (1, 2)]
    assert compare(*few).evenness.reason == "5 items with No rows are too few; at least 10 are needed"


def test_without_no_rows_equivalence_and_p_use_the_quantile_of_the_interval(tmp_path: Path) -> None:
    from transformers_agci.experiments.position.evidence import gather
    from transformers_agci.experiments.position.results import read_results

    results = [read_results(write(tmp_path / f"{k}.jsonl", rows(margins(12, k))), label=str(k)) for k in (1, 2)]
    (comparison,) = gather(results, margin=0.1).comparisons
    low, high = comparison.pair.yes.accuracy.overall[1:3]
    middle, error = (low + high) / 2, (high - low) / 2 / stats.t.ppf(0.975, 11)
    assert comparison.tests["accuracy"] == pytest.approx(2 * stats.t.sf(abs(middle) / error, 11))
    assert comparison.equivalence.p == pytest.approx(stats.t.sf((0.1 - abs(middle)) / error, 11))


def test_units_that_disagree_are_no_evidence_of_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Louder noise and Yes rows nearer to No rows: V falls in one unit and rises in the other, both beyond doubt."""
    yes, no = margins(200, 1, bias=0.5), margins(200, 2, mean=-1.3)
    louder = 0.5 * np.linspace(1, -1, 9) + 2 * (yes - 1.3 - 0.5 * np.linspace(1, -1, 9))
    paths = [write(tmp_path / "a.jsonl", rows(yes, no)), write(tmp_path / "b.jsonl", rows(louder + 0.5, 2 * no + 2.1))]
    out = tmp_path / "e.json"
    assert main(["evidence", *paths, "--draws", "20", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    (comparison,) = json.loads(out.read_text())["comparisons"]
    found = comparison["pair"]["evenness"]
    assert found["margin"]["high"] < 0 < found["margin_other_unit"]["low"] and found["verdict"] == "cannot tell"
    assert "falls in sd within a cell, rises in the distance of Yes and No rows" in found["reason"]
    assert comparison["tests"]["evenness"] > 0.05
    line = next(line for line in text.split("Holm's correction")[1].splitlines() if line.startswith("b "))
    assert "cannot tell" in line


def test_a_change_that_is_called_has_the_p_of_both_units(three: list[str], tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    assert main(["evidence", three[0], three[2], "--draws", "20", "--json", str(out)]) == 0
    (comparison,) = json.loads(out.read_text())["comparisons"]
    found = comparison["pair"]["evenness"]
    p = [
        2 * stats.t.sf(abs(c["estimate"]) / (c["high"] - c["low"]) * 2 * stats.t.ppf(0.975, 79), 79)
        for c in (found["margin"], found["margin_other_unit"])
    ]
    assert found["verdict"] == "more even"
    assert comparison["tests"]["evenness"] == pytest.approx(max(p), rel=1e-6) and max(p) <= 0.05


def test_answers_against_their_margin_are_counted_and_the_first_is_named(
    tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in Path(three[0]).read_text().splitlines()]
    chosen = [k for k, row in enumerate(lines) if row["answer"] == "Yes" and row["margin"] > 0][5:8]
    for k in chosen:
        lines[k]["prediction"] = "No"
    lines[chosen[0] + 40]["prediction"] = "neither"  # unreadable is not against its margin
    path = write(tmp_path / "against.jsonl", lines)
    item = lines[chosen[0]]["image"].rsplit("_", 1)[0]
    said = "3 answers of against go against their margin (a No above zero or a Yes below), the first on the Yes row of "
    said += f"{item} at {lines[chosen[0]]['position']}: "
    out = tmp_path / "m.json"
    assert main(["metrics", "--results_file", path, "--draws", "20", "--json", str(out)]) == 0
    assert said in capsys.readouterr().out
    assert json.loads(out.read_text())["results"][0]["yes"]["against_margin"] == 3
    for command in (["evidence", three[0], path, "--draws", "20"], ["sweep", three[0], path]):
        assert main(command) == 0
        assert said in capsys.readouterr().out
    assert main(["metrics", "--results_file", three[0], "--draws", "20"]) == 0
    assert "against their margin" not in capsys.readouterr().out


def test_evenness_that_cannot_be_had_is_no_test(tmp_path: Path) -> None:
    """Yes rows without margins: nothing is tested, and nothing is counted in the correction of the other tests."""
    paths = [write(tmp_path / f"{k}.jsonl", rows(margins(30, k), margin=False)) for k in (1, 2)]
    out = tmp_path / "e.json"
    assert main(["evidence", *paths, "--draws", "20", "--json", str(out)]) == 0
    (comparison,) = json.loads(out.read_text())["comparisons"]
    assert set(comparison["tests"]) == {"accuracy", "lambda x position"}


def test_what_is_said_of_lambda_by_position(
    tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def said(second: np.ndarray) -> str:
        first = np.where(np.arange(60)[:, None] < 20, -1.0, 1.0) * np.ones(9)
        first[:, 0] = 1.0  # a cell that is all right
        paths = [write(tmp_path / f"{k}.jsonl", rows(table)) for k, table in enumerate((first, second))]
        assert main(["evidence", *paths, "--draws", "20"]) == 0
        return capsys.readouterr().out

    changed = np.where(np.arange(60)[:, None] < 16 + np.arange(9), -1.0, 1.0) * np.ones(9)
    out = said(changed)
    assert "For 1 lambda x position is tested on shares" not in out  # three cells have too few changed answers
    assert "lambda x position is not tested for 1: in some cell 0 answers differ from 0's, and 3 are needed" in out
    out = said(np.where(np.random.default_rng(0).random((60, 9)) < 0.2, -1.0, 1.0))
    assert "For 1 lambda x position is tested on shares, not on log odds" in out and "is not tested" not in out
