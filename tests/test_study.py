"""The fine-tuning study: its data, its table, and a small run of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.sharegpt import read_entry
from transformers_agci.experiments.study.run import LAMBDAS, Study
from transformers_agci.experiments.study.table import CHANGE, CONTRASTS, CROSSED, Models, _changes, study_report
from transformers_agci.experiments.study.training_data import write_training_data

ITEMS = 4


def write_answers(path: Path, yes: str, no: str) -> None:
    """Every Yes row is answered with `yes`, every No row with `no`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": 9 * item + cell,
            "image": f"{item:09d}_{cell}.jpg",
            "caption": "a dog",
            "position": position,
            "answer": answer,
            "prediction": said,
            "yes_logit": 1.0,
            "no_logit": 0.0,
            "margin": 1.0,
        }
        for item in range(ITEMS)
        for answer, said in (("Yes", yes), ("No", no))
        for cell, position in enumerate(POSITIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_table_by_hand(tmp_path: Path) -> None:
    """As it was always right; AGCI in the evaluation says Yes to everything; the training changes nothing, but for one
    of two seeds trained with AGCI, which says Yes to everything without it, too."""
    study = Study(tmp_path, seeds=2)
    for evaluated in LAMBDAS:
        write_answers(study.answers(None, evaluated), "Yes", "Yes" if evaluated else "No")
        for seed in range(2):
            write_answers(study.answers(seed, 0.0, evaluated), "Yes", "Yes" if evaluated else "No")
            write_answers(study.answers(seed, 0.5, evaluated), "Yes", "Yes" if evaluated or seed else "No")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in study_report(study).text.splitlines()]
    found = {line[0]: line[1:] for line in lines if line}
    right, wrong = "100.0 [51.0, 100.0]", "0.0 [0.0, 49.0]"  # Wilson's interval of four items
    always_yes = ["50.0 [15.0, 85.0]", right, wrong]
    assert found["as it was, probed at 0"][:3] == [right] * 3
    assert found["as it was, probed at 0.5"][:3] == always_yes
    assert found["trained at 0, probed at 0"][:3] == [right] * 3
    assert found["trained at 0, probed at 0.5"][:3] == found["trained at 0.5, probed at 0.5"][:3] == always_yes
    assert found["trained at 0.5, probed at 0"][:2] == ["75.0 [0.0, 100.0]", right]  # t with one degree of freedom
    balanced = {name: cells[0].partition(" ")[0] for name, cells in found.items()}
    assert balanced["lambda in training (mean of both evaluations)"] == "-12.5"
    assert balanced["lambda in evaluation (mean of both trainings)"] == "-37.5"
    assert balanced["interaction (what the second does more after the first)"] == "+25.0"
    assert found["both: trained and probed at 0.5 - at 0"][0] == "-50.0 [no interval]"
    assert found["lambda in evaluation, before the training"][:3] == [
        "-50.0 [no interval]",
        "0.0 [no interval]",
        "-100.0 [no interval]",
    ]
    assert "seed 0: -50.0, seed 1: -50.0." in study_report(study).text
    names = [label.get_text() for label in study_report(study).figure().axes[0].get_yticklabels()]
    assert [name.replace("\n", " ") for name in names][3] == "both: trained and probed at 0.5 − at 0"


def test_contrasts_compare_like_with_like() -> None:
    """Every one sums to zero, and the main effects and the interaction are orthogonal over the crossover."""
    assert all(sum(contrast.values()) == 0 for contrast in CONTRASTS.values())
    first, second, third = ([contrast.get(at, 0) for at in CROSSED] for contrast in list(CONTRASTS.values())[:3])
    assert np.dot(first, second) == np.dot(first, third) == np.dot(second, third) == 0


def test_differences_are_paired() -> None:
    """Seeds and items differ much among themselves and in nothing between the two conditions."""
    rng = np.random.default_rng(0)
    yes = (rng.random((5, 40, 9)) < rng.random((5, 40, 1))).astype(float)
    models, better = Models(yes, yes), Models(np.where(np.arange(40)[:, None] < 4, 1.0, yes), yes)
    contrast = {CROSSED[1]: 1.0, CROSSED[0]: -1.0}
    assert CHANGE.write(_changes({CROSSED[0]: models, CROSSED[1]: models}, contrast)[0]) == "0.0 [no interval]"
    assert _changes({CROSSED[0]: models, CROSSED[1]: better}, contrast)[0].estimate > 0


def test_training_data_are_balanced_and_readable(tmp_path: Path) -> None:
    name = write_training_data(tmp_path, 3, 8)
    rows = list(read_entry(tmp_path, name).conversations())
    assert [row.turns[1].text for row in rows] == ["Yes", "No"] * 4
    assert all((tmp_path / row.images[0]).is_file() for row in rows)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert write_training_data(tmp_path, 3, 8) == name
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("option", ["--seeds", "--steps", "--items"])
def test_bad_numbers(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--output_dir", str(tmp_path), option, "0"]) == 2
    assert f"{option} must be at least 1" in capsys.readouterr().err


def test_another_study_stands_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"steps": 7, "items": 1, "learning_rate": 1e-3}))
    assert main(["study", "--output_dir", str(tmp_path), "--steps", "9", "--items", "1"]) == 2
    assert "steps is 7 there and 9 now. Give another --output_dir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert main(["study", "--output_dir", str(tmp_path / "study.json")]) == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_small_study_and_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed, two steps, one item; the second call trains nothing and asks nothing."""
    words = ["study", "--output_dir", str(tmp_path / "s"), "--seeds", "1", "--steps", "2", "--items", "1"]
    assert main(words) == 0
    first = (tmp_path / "s" / "study.md").read_text()
    settings = {
        lam: json.loads((tmp_path / "s" / f"seed0.lam{lam}" / "adapter" / "training.manifest.json").read_text())[
            "settings"
        ]
        for lam in ("0", "0.5")
    }
    assert [settings[lam]["lambda"] for lam in settings] == [0.0, 0.5]
    assert settings["0"]["recipe"] == settings["0.5"]["recipe"]
    assert settings["0"]["data"] == settings["0.5"]["data"]
    probed = json.loads((tmp_path / "s" / "seed0.lam0.5" / "answers.manifest.json").read_text())
    assert probed["settings"]["lambda"] == probed["notes"]["lambda_in_config"] == 0.5
    crossed = json.loads((tmp_path / "s" / "seed0.lam0.5" / "answers.lam0.manifest.json").read_text())
    assert (crossed["settings"]["lambda"], crossed["notes"]["lambda_in_config"]) == (0.0, 0.5)
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("is finished already") == 2
    assert (tmp_path / "s" / "study.md").read_text() == first
