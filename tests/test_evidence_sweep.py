"""agci sweep and plan: lambda chosen on some items and reported on others, items that an effect needs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence_rows
import numpy as np
import pytest
from evidence_rows import as_tables, margins, rows, write
from scipy import stats

from transformers_agci.cli import main
from transformers_agci.experiments.position.sweep import part_of
from transformers_agci.statistics import planning

three = evidence_rows.three  # fixture


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


def test_a_sweep_asks_no_engine(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *three, "--engine", "vllm"]) == 2
    assert "agci sweep asks nothing" in capsys.readouterr().err


def test_pilots_of_different_grids_plan_nothing(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "g.jsonl", rows(margins(80, 3, cells=4), margins(80, 4, cells=4, mean=-1.3), shape=(2, 2)))
    assert main(["plan", three[0], other, "--difference", "2"]) == 2
    assert f"'r0' ({three[0]}) has a 3x3 grid and 'g' ({other}) a 2x2 one" in capsys.readouterr().err


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
