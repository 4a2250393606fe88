"""agci evidence, sweep and plan: several results at once, lambda chosen honestly, how many items are needed."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import special, stats
from statsmodels.genmod.cov_struct import Independence
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE
from statsmodels.stats.weightstats import ttost_paired

from transformers_agci import statistics as st
from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.experiments.position.calibration import calibration
from transformers_agci.experiments.position.comparison import compare
from transformers_agci.experiments.position.results import Tables
from transformers_agci.experiments.position.sweep import part_of
from transformers_agci.statistics import planning, regression
from transformers_agci.statistics.equivalence import equivalence


def rows(
    yes: bool, no: np.ndarray | None = None, margin: np.ndarray = True, shape: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """Rows of a result from margins [items, cells]; caption and image name the item."""
    found = []
    for answer, table in (("Yes", yes), ("No", no)):
        for item in range(0 if table is None else len(table)):
            for cell in range(table.shape[1]):
                if np.isnan(table[item, cell]):
                    continue
                row = {"image": f"i{item:03d}_{cell}.jpg", "caption": f"{answer} {item}", "answer": answer}
                row["prediction"] = "Yes" if table[item, cell] > 0 else "No"
                if shape:
                    row |= {"grid": f"{shape[0]}x{shape[1]}", "row": cell // shape[1], "col": cell % shape[1]}
                else:
                    row["position"] = POSITIONS[cell]
                if margin:
                    row["margin"] = float(table[item, cell])
                found.append(row)
    return found


def write(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def margins(items: int, seed: int, bias: float = 0.0, mean: float = 1.3, cells: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lean = bias * np.linspace(1, -1, cells)
    return mean + lean + 0.7 * rng.normal(size=(items, 1)) + 0.7 * rng.normal(size=(items, cells))


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """A biased baseline, the same with a moved threshold, and one without the bias."""
    yes, no = margins(80, 0, bias=0.5, mean=0.9), margins(80, 1, mean=-1.3)
    repaired = yes - 0.5 * np.linspace(1, -1, 9) + 0.1 * margins(80, 2, mean=0)
    pairs = [(yes, no), (yes + 0.5, no + 0.5), (repaired, no)]
    return [write(tmp_path / f"r{number}.jsonl", rows(*pair)) for number, pair in enumerate(pairs)]


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


def test_wald_is_that_of_a_regression_with_clusters() -> None:
    """statsmodels' GEE with a parameter per result and cell; our covariance has n - 1 where the sandwich has n."""
    first, second = ((margins(60, seed, 0.3, mean=0.5, cells=4) > 0) * 1.0 for seed in (3, 4))
    ours = regression.method_by_position(first, second)
    y, x, groups = [], [], []
    for item in range(60):
        for result, table in enumerate((first, second)):
            for cell in range(4):
                row = np.zeros(8)
                row[4 * result + cell] = 1
                y.append(table[item, cell])
                x.append(row)
                groups.append(item)
    fit = GEE(np.array(y), np.array(x), np.array(groups), family=Binomial(), cov_struct=Independence()).fit()
    contrasts = np.zeros((3, 8))
    for k in range(3):
        contrasts[k, [k, 3, 4 + k, 7]] = [-1, 1, 1, -1]
    statistic = float(np.asarray(fit.wald_test(contrasts, scalar=True).statistic))
    assert ours.statistic == pytest.approx(statistic * 59 / 60, rel=1e-6)
    assert ours.freedom == (3, 57)


def test_odds_ratio_of_yes_and_truth_is_that_of_a_regression() -> None:
    tables = [[(margins(50, 10 * k + j, mean=m) > 0) * 1.0 for j, m in enumerate((0.8, -0.8))] for k in (1, 2)]
    shift, truth = regression.method_by_truth(tuple(tables[0]), tuple(tables[1]))
    y = np.concatenate([t.ravel() for pair in tables for t in pair])
    result, answer = np.repeat([0, 0, 1, 1], 450), np.repeat([0.5, -0.5, 0.5, -0.5], 450)
    x = np.stack([np.ones(1800), result, answer, result * answer], axis=1)
    fit = GEE(y, x, np.tile(np.repeat(np.arange(50), 9), 4), family=Binomial(), cov_struct=Independence()).fit()
    assert (shift.estimate, truth.estimate) == pytest.approx((fit.params[1], fit.params[3]), abs=1e-6)
    half = stats.t.ppf(0.975, 49) * fit.bse[3] * np.sqrt(50 / 49)
    assert truth.high - truth.estimate == pytest.approx(half, rel=1e-6)


def test_reliability_by_hand() -> None:
    """sigma(2) = .88 twice as a Yes row's and as a No row's (1 - .12), and .52 of one row of either answer."""
    yes, no = as_tables(np.array([[2.0, 0.1], [2.0, np.nan]])), as_tables(np.array([[-2.0, 0.1], [-2.0, 0.0]]), False)
    found = calibration(yes, no)
    assert [of_bin.share.n for of_bin in found.curve] == [2, 3, 2]
    assert [of_bin.share.estimate for of_bin in found.curve] == pytest.approx([0, 1 / 3, 1])
    middle = special.expit([0.1, 0.1, 0.0]).mean()
    assert [of_bin.probability for of_bin in found.curve] == pytest.approx(
        [special.expit(-2), middle, special.expit(2)]
    )
    assert calibration(yes, None) is None


def test_the_interval_of_a_brier_score_stays_within_its_range() -> None:
    """One of three items is wrong throughout: the t interval would reach below 0 and above 1."""
    right = np.array([[9.0], [9.0], [-9.0]]) * np.ones((1, 2))
    found = calibration(as_tables(right), as_tables(-right, False)).brier
    assert found.estimate == pytest.approx(1 / 3, abs=1e-3) and (found.low, found.high) == (0, 1)


@pytest.mark.parametrize(("margin", "wrong", "gap"), [(5.0, 0.25, 0.243), (np.log(4), 0.2, 0.0)])
def test_surer_than_right(margin: float, wrong: float, gap: float) -> None:
    """Equally sure of every answer: the gap is that confidence less the share that is right, for both words alike."""
    signs = np.where(np.arange(100) < 100 * wrong, -1.0, 1.0)[:, None] * np.ones((1, 2))
    found = calibration(as_tables(margin * signs), as_tables(-margin * signs, False))
    assert found.gap.estimate == pytest.approx(gap, abs=1e-3)
    assert [cell.estimate for cell in found.cells] == pytest.approx([gap, gap], abs=1e-3)


def test_equivalence_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=40), rng.normal(size=40)
    change = st.mean_over_items((b - a)[:, None]).overall
    p = ttost_paired(b, a, -0.7, 0.7)[0]
    found = equivalence(change, 0.7, 39)
    assert found.p == pytest.approx(p) and found.shown == (p <= 0.05)
    assert equivalence(st.Interval(0, np.nan, np.nan, 1), 0.7, 0) is None


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


def test_a_sweep_chooses_on_some_items_and_reports_on_others(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.json"
    assert main(["sweep", *three, "--choose_by", "evenness", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    found, manifest = json.loads(out.read_text()), json.loads((tmp_path / "s.manifest.json").read_text())
    assert found["chosen"] == "r2" and found["pair"]["evenness"]["verdict"] == "more even"
    dev = sum(part_of(f"Yes {item}", 1000) < 500 for item in range(80))
    assert found["split"]["dev"] == dev and found["split"]["held_out"] == 80 - dev == found["pair"]["items"]
    assert manifest["settings"]["split"]["rule"].startswith("SHA-256 of the caption")
    assert set(manifest["settings"]["results_sha256"]) == {"r0.jsonl", "r1.jsonl", "r2.jsonl"}
    assert f"On the {80 - dev} held-out items" in text
    assert main(["sweep", *three, "--nested"]) == 0
    assert "5 folds" in capsys.readouterr().out


def test_a_fold_of_one_item_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    firsts = [item for item in range(99) if part_of(f"Yes {item}", 5) == 0]
    few = firsts[1]  # items before the second that falls into the first fold
    assert few > 3
    files = [write(tmp_path / f"{seed}.jsonl", rows(margins(few, seed), margins(few, 9 - seed))) for seed in (0, 1)]
    assert main(["sweep", *files, "--nested"]) == 2
    assert f"Fold 1 of 5 has 1 item of '0' ({files[0]}); give results of more items." in capsys.readouterr().err


def test_refusals_of_a_sweep_and_a_plan_name_the_file(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The label of a result says only which method and lambda it is of."""

    def written(name: str, items: int, *, answer: str = "", margins_too: bool = True, cells: int = 9) -> str:
        table = margins(items, 1), margins(items, 5, mean=-1.3)
        kept = [row for row in rows(*table) if row["answer"] != answer]
        return write(tmp_path / name, [row if margins_too else row | {"margin": None} for row in kept[: cells * items]])

    one, few, yes_only = written("one.jsonl", 1), written("few.jsonl", 3), written("yes.jsonl", 30, answer="No")
    bare = written("bare.jsonl", 80, margins_too=False, cells=18)
    refused = {
        one: ["sweep", one, one],
        few: ["sweep", few, few],
        yes_only: ["sweep", yes_only, yes_only],
        bare: ["sweep", bare, bare, "--choose_by", "auc"],
        three[0]: ["sweep", three[0], three[1], "--held_out", three[0], three[1]],
    }
    for path, words in refused.items():
        assert main(words) == 2
        assert f"({path})" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--dev_share", "1"], "a lambda is not reported on the items on which it was chosen"),
        (["--dev_share", "2", "--nested"], "--dev_share is 2, but must lie between 0 and 1"),
        (["--held_out", "SAME"], "80 captions"),
    ],
)
def test_a_lambda_is_not_reported_on_the_items_that_chose_it(
    three: list[str], capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    words = [part for word in words for part in (three if word == "SAME" else [word])]
    assert main(["sweep", *three, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "not reported on the items on which it was chosen" in error


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


def test_a_sweep_asks_no_engine(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *three, "--engine", "vllm"]) == 2
    assert "agci sweep asks nothing" in capsys.readouterr().err


def test_pilots_of_different_grids_plan_nothing(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "g.jsonl", rows(margins(80, 3, cells=4), margins(80, 4, cells=4, mean=-1.3), shape=(2, 2)))
    assert main(["plan", three[0], other, "--difference", "2"]) == 2
    assert f"'r0' ({three[0]}) has a 3x3 grid and 'g' ({other}) a 2x2 one" in capsys.readouterr().err


def as_tables(margin: np.ndarray, yes: bool = True) -> Tables:
    """What `read_results` makes of such rows."""
    said = (margin > 0) * 1.0
    return Tables(correct=said if yes else 1 - said, said_yes=said, unreadable=0 * said, margin=margin)


@pytest.mark.slow
def test_the_best_of_several_equal_lambdas_is_no_better_on_held_out_items(tmp_path: Path) -> None:
    """Ten results of one model: the best on the dev items gains there, and nothing on the others."""
    from transformers_agci.experiments.position.results import read_results
    from transformers_agci.experiments.position.sweep import sweep

    gains = []
    template = read_results(write(tmp_path / "a.jsonl", rows(margins(60, 0), margins(60, 50, mean=-1.3))))
    for trial in range(12):
        seeds = range(100 * trial, 100 * trial + 6)
        tables = [(as_tables(margins(60, s)), as_tables(margins(60, s + 50, mean=-1.3), yes=False)) for s in seeds]
        results = [replace(template, label=str(k), yes=yes, no=no) for k, (yes, no) in enumerate(tables)]
        found = sweep(results)
        if found.pair:
            gains.append((found.scores[found.chosen] - found.scores["0"], found.pair.balanced.estimate))
    inside, outside = np.mean(gains, axis=0)
    assert len(gains) >= 8 and inside > 0.02 and abs(outside) < inside / 2


def test_plans_agree_with_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = planning.items_for_position(9, 0.3, 0.5)
    needed = plans[0].items
    lean = 0.3 * np.repeat([1, 0, -1], 3) * np.sqrt(1.5)
    rng = np.random.default_rng(7)
    found = [
        stats.f.sf(
            _within_f(lean + rng.normal(size=(needed, 1)) + np.sqrt(0.5) * rng.normal(size=(needed, 9))),
            8,
            8 * (needed - 1),
        )
        <= 0.05
        for _ in range(600)
    ]
    assert np.mean(found) == pytest.approx(planning.position_power(needed, 9, 0.3, 0.5), abs=0.05)
    assert planning.position_power(needed, 9, 0.3, 0.5) >= 0.8 > planning.position_power(needed - 1, 9, 0.3, 0.5)
    assert planning.items_for_difference(0.5, 1.0)[0].items == 34  # the textbook's t test
    one = write(tmp_path / "p.jsonl", rows(margins(60, 8), margins(60, 9, mean=-1.3)))
    two = write(tmp_path / "q.jsonl", rows(margins(60, 8) + 0.1, margins(60, 9, mean=-1.3) + 0.1))
    assert main(["plan", one, two, "--difference", "2"]) == 0
    text = capsys.readouterr().out
    assert (
        "positions differ with an sd of 2 points" in text and "that of the 60 items that the two pilots share" in text
    )
    assert main(["plan", one, "--difference", "2"]) == 0
    assert "give a second pilot" in capsys.readouterr().out
    assert main(["plan", one, "--difference", "0"]) == 2
    right = write(tmp_path / "r.jsonl", rows(np.ones((40, 9))))
    assert main(["plan", right, "--difference", "2"]) == 2
    assert "do not vary within its items" in capsys.readouterr().err


def _within_f(table: np.ndarray) -> float:
    """F of the cells in a table [items, cells] with items as blocks."""
    n, cells = table.shape
    between = n * ((table.mean(axis=0) - table.mean()) ** 2).sum() / (cells - 1)
    return between / planning.residual_variance(table)


def test_a_sweep_and_a_plan_take_results_of_the_same_captions(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in Path(three[1]).read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "caption": row["caption"] + "!"}) + "\n" for row in rows))
    for words in (["sweep", "--nested"], ["sweep"], ["evidence"], ["plan", "--difference", "2"]):
        assert main([words[0], three[0], str(other), *words[1:]]) == 2
        assert "has the caption" in capsys.readouterr().err


def test_a_nested_sweep_gains_nothing_by_rows_that_are_missing(tmp_path: Path, three: list[str]) -> None:
    from transformers_agci.experiments.position.results import read_results
    from transformers_agci.experiments.position.sweep import nested

    right = tmp_path / "right.jsonl"
    lines = Path(three[0]).read_text().splitlines()
    right.write_text("\n".join(line for line in lines if (row := json.loads(line))["prediction"] == row["answer"]))
    found = nested([read_results(three[0]), read_results(right)])
    assert found.gain.estimate == 0


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


def made_with(path: str, **settings: Any) -> str:
    Path(path).with_suffix(".manifest.json").write_text(json.dumps({"settings": settings}))
    return path


def test_held_out_results_are_paired_by_method_and_lambda(
    tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def other(number: int) -> str:
        found = [{**json.loads(line)} for line in Path(three[number]).read_text().splitlines()]
        return write(tmp_path / f"h{number}.jsonl", [{**row, "caption": f"held {row['caption']}"} for row in found])

    held = [other(number) for number in range(3)]
    assert main(["sweep", *three, "--held_out", *held]) == 0
    assert "Paired by their places only" in capsys.readouterr().out
    for paths in (three, held):
        for path, lam in zip(paths, (0, 0.1, 0.5), strict=True):
            made_with(path, method="agci", **{"lambda": lam})
    assert main(["sweep", *three, "--held_out", *held]) == 0
    assert "Paired by their places only" not in capsys.readouterr().out
    assert main(["sweep", *three, "--held_out", held[0], held[2], held[1]]) == 2
    error = capsys.readouterr().err
    assert "r1.jsonl is of agci at 0.1, but " in error and "of agci at 0.5; give the held-out results in" in error
    made_with(held[1], method="uniform", **{"lambda": 0.1})
    assert main(["sweep", *three, "--held_out", *held]) == 2
    assert "of uniform at 0.1" in capsys.readouterr().err


def test_captions_of_held_out_items_are_compared_without_their_blanks(
    tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def held(name: str, change: Callable[[str], str]) -> list[str]:
        found = [[json.loads(line) for line in Path(path).read_text().splitlines()] for path in three]
        return [
            write(tmp_path / f"{name}{k}.jsonl", [{**row, "caption": change(row["caption"])} for row in of_one])
            for k, of_one in enumerate(found)
        ]

    assert main(["sweep", *three, "--held_out", *held("a", lambda caption: f" {caption}  ")]) == 2
    assert "80 captions" in capsys.readouterr().err
    assert main(["sweep", *three, "--held_out", *held("b", lambda caption: "")]) == 2
    assert f"80 items of 'b0' ({tmp_path / 'b0.jsonl'}) have no caption" in capsys.readouterr().err


@pytest.mark.parametrize("choice", ["balanced", "auc", "evenness"])
def test_a_sweep_scores_the_rows_that_all_results_have(tmp_path: Path, three: list[str], choice: Any) -> None:
    """A result that lacks its wrong rows is the same result: it does not score more."""
    from transformers_agci.experiments.position.results import read_results
    from transformers_agci.experiments.position.sweep import scores_of

    lines = [json.loads(line) for line in Path(three[0]).read_text().splitlines()]
    kept = [row for row in lines if row["prediction"] == row["answer"] or row["position"] == "top_left"]
    right = read_results(write(tmp_path / "right.jsonl", kept))
    whole = read_results(three[0])
    scores = scores_of([whole, right], choice)
    assert scores["r0"] == scores["right"]
    assert scores["r0"] != scores_of([whole, whole], choice)["r0"]


def test_a_plan_counts_the_rows_that_both_pilots_have(
    tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A pilot that lacks rows differs from itself on no item."""
    lines = [json.loads(line) for line in Path(three[0]).read_text().splitlines()]
    kept = write(tmp_path / "kept.jsonl", [row for row in lines if row["prediction"] == row["answer"]])
    assert main(["plan", three[0], kept, "--difference", "2"]) == 0
    out = capsys.readouterr().out
    assert "Nothing can be planned for a difference: it is the same for every item." in out
    assert "differ by 2 points" not in out


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
