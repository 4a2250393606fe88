"""`agci metrics`: what is printed, drawn and written, how results are called, and mistakes in one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import RESAMPLING, coin, margin_rows, margins, result_rows, write
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.experiments.position.measures import measure
from transformers_agci.experiments.position.metrics import evaluate, load, load_all
from transformers_agci.experiments.position.results import read_results


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


def test_a_file_that_holds_no_results_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.lam0.jsonl", "a.lam0.5.jsonl", "torn.jsonl"):
        write(Path(name), result_rows(2, coin(0.7, 1)))
    Path("torn.jsonl").write_bytes(Path("torn.jsonl").read_bytes()[:-9])
    Path("torn.manifest.json").write_text('{"settings": {}}')
    assert main(["metrics", "--results_file", "a.lam0.jsonl", "--draws", "5", "--json", "m.json"]) == 0
    capsys.readouterr()
    for name, said in {
        "a.jsonl": "there is no such file; of the lambdas that were asked there are a.lam0.5.jsonl and a.lam0.jsonl.",
        "m.json": "m.json: this holds the numbers of an earlier evaluation",
        "torn.manifest.json": "torn.manifest.json: this is a manifest",
        "torn.jsonl": "the command that wrote it mends it when run again",
    }.items():
        assert main(["metrics", "--results_file", name]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_equal_results_are_said_to_be_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in {"a.jsonl": 1, "b.jsonl": 1, "c.jsonl": 2}.items():
        write(Path(name), result_rows(2, coin(0.7, seed)))
    for names, said in {
        ("a.jsonl", "a.jsonl"): "a.jsonl is given twice: the two results are equal in every row.",
        ("a.jsonl", "b.jsonl"): "a.jsonl and b.jsonl: the two results are equal in every row.",
        ("a.jsonl", "c.jsonl"): "",
    }.items():
        for words in (["metrics", "--results_file", *names, "--draws", "5"], ["plan", *names, "--difference", "5"]):
            assert main(words) == 0
            printed = capsys.readouterr().out
            assert said in printed and ("equal in every row" in printed) == bool(said)
