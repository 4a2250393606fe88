"""The position probe's metrics of one result and of two: scoring rule, pairing, what is left out, numbers by hand."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import RESAMPLING, coin, margin_rows, margins, result_rows, write
from scipy import stats

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.comparison import compare
from transformers_agci.experiments.position.measures import measure
from transformers_agci.experiments.position.metrics import load_controls
from transformers_agci.experiments.position.results import read_answer, read_results
from transformers_agci.statistics import evenness


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
    assert result.yes.correct[0, 0] == 0 and result.yes.unreadable[0, 0] == 1 and np.isnan(result.yes.said_yes[0, 0])
    assert result.yes.correct[1, 4] == 0 and result.no.said_yes[1, 4] == 1
    assert result.yes.correct.sum() == 25 and result.no.correct.sum() == 26


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


def test_a_reply_that_is_no_letter_is_not_right_without_the_image(tmp_path: Path) -> None:
    lines = [row | {"prediction": "Hm" if k % 4 == 0 else row["answer"]} for k, row in enumerate(choice_rows(40, 1))]
    (control,) = load_controls([write(tmp_path / "a.jsonl", lines)])
    assert control.choice and control.no_rate is None
    assert control.yes_rate.estimate == 0.75 and control.yes_rate.n == 120
    assert control.notes == ("30 of 120 replies of text only are no letter: accuracies count them as wrong.",)


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
