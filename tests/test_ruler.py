"""`agci ruler`: margins as the position probe has them, what is made of them, and a run that goes on."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformers_agci import InputError
from transformers_agci.cli import main
from transformers_agci.embedded import Atlas
from transformers_agci.embedded.probe_set import PROBE_STREAM, render_item
from transformers_agci.experiments.ruler import analysis
from transformers_agci.experiments.ruler import run as ruler_run
from transformers_agci.experiments.ruler.analysis import ItemSet, Side
from transformers_agci.experiments.ruler.conditions import ARMS, BETAS, CALIBRATION, NOTHING, REPAIR, RULER, Condition
from transformers_agci.experiments.ruler.report import criteria_text
from transformers_agci.experiments.ruler.run import ItemRun
from transformers_agci.method.rivals import RIVALS


def test_every_bias_has_every_arm_once() -> None:
    assert len({condition.name for condition in RULER}) == len(RULER) == len(BETAS) * len(ARMS) + 4
    assert Condition(0.5, REPAIR).planted == (0.5, -0.5)
    assert Condition(None, "agci").planted == (0.0, 0.0)
    assert [Condition(1.0, arm).method for arm in ARMS] == [None, None, "agci", "uniform", "random"]
    assert set(CALIBRATION) <= set(RULER)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "arm", ["agci:0.5", "vcd:1", "uac:1", "pai:0.2", "adaptvis:1", "bapa:1", "cca:1", "random:0.5"]
)
def test_margins_are_those_of_the_position_probe(tmp_path: Path, arm: str) -> None:
    """The ruler's own loop against `agci probe`: the engine with its replays, a method and a planted bias."""
    from transformers_agci.experiments.ruler.measure import RulerModel

    method, _, strength = arm.partition(":")
    words = ["probe", "--items", "1", "--quiet", "--answer_file", str(tmp_path / "a.jsonl"), "--planted_bias", "1"]
    rival = ["--method_options", f"strength={strength}"]
    lam = ["--global_context_lambda", strength]
    assert main([*words, "--method", method, *(rival if method in RIVALS else lam)]) == 0
    [file] = tmp_path.glob("a*.jsonl")
    condition = Condition(1.0, arm)
    found = RulerModel(0.5).margins(render_item(Atlas(), (*PROBE_STREAM, 0), 0), [condition])[condition.name]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 18
    for question, answer in enumerate(("Yes", "No")):
        margins = [row["margin"] for row in rows if row["answer"] == answer]
        assert np.allclose(found[question], margins, atol=1e-4), answer
    assert json.loads(file.with_suffix(".manifest.json").read_text())["settings"]["planted_bias"] == 1.0


def test_a_journal_of_shortened_prompts_is_not_continued(tmp_path: Path) -> None:
    """An earlier version let rivals that look at the last token continue the image's cache."""
    run = ItemRun(tmp_path / "m.jsonl", ("ruler",), 0, [Condition(1.0), Condition(1.0, "uac:1")], 0.5, 1)
    assert "whole_prompts" not in replace(run, conditions=[Condition(1.0), Condition(1.0, "bapa:1")]).settings()
    earlier = {name: value for name, value in run.settings().items() if name != "whole_prompts"}
    run.file.write_text(json.dumps(earlier) + "\n")
    with pytest.raises(InputError, match="whole_prompts"):
        run.margins()


def simulated(items: int, size: float, seed: int = 0) -> Any:
    """Margins [items, 2, cells] whose Yes rows fall by `size` standard deviations from the top to the bottom row."""
    rng = np.random.default_rng(seed)
    level, noise = rng.normal(size=(items, 1, 1)), rng.normal(size=(items, 2, 9))
    rows = np.repeat([0.0, 0.5, 1.0], 3)
    return level + 0.3 * noise + np.array([[2.0], [-2.0]]) - size * np.stack([rows, 0 * rows])


@pytest.mark.slow
def test_a_killed_process_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ruler_run, "_Worker", SimpleNamespace(start=print, ask=os._exit))
    assert main(["ruler", "--items", "3", "--processes", "2", "--output_dir", str(tmp_path)]) == 2
    assert "process was killed" in capsys.readouterr().err


def test_a_bias_and_its_repair_are_recognised() -> None:
    even, biased = (Side.of(simulated(200, size)) for size in (0.0, 0.5))
    assert analysis.verdict_on(biased, even) == "more even"
    assert analysis.verdict_on(even, biased) == "less even"
    assert analysis.verdict_on(even, Side(even.yes + 1, even.no + 1)) == "no difference shown"
    described = analysis.describe(biased)
    assert described["position_p"] < 0.001
    # The row means 0, -0.25, -0.5 have a standard deviation of 0.204; margins one of sqrt(1 + 0.3^2).
    assert analysis.signed_root(described["unevenness"]["margin"]["estimate"]) == pytest.approx(0.204 / 1.044, abs=0.02)
    assert analysis.describe(even)["position_p"] > 0.01


def test_agci_is_compared_with_its_control_too() -> None:
    """What docs/ruler.md says about AGCI against uniform stands in docs/ruler/ruler.json."""
    margins = {condition.name: simulated(30, condition.beta or 0.0) for condition in RULER}
    summary = analysis.summarize(margins, RULER)
    beside = [name for name, found in summary.items() if "against uniform" in found]
    assert (
        beside == [condition.name for condition in RULER if condition.arm == "agci"] and len(beside) == len(BETAS) + 1
    )
    committed = json.loads((Path(__file__).parents[1] / "docs/ruler/ruler.json").read_text())["conditions"]
    said = [committed[name]["against uniform"]["verdict"] for name in beside]
    assert said == 4 * ["no difference shown"] + ["cannot tell", "no difference shown"]
    of_calibration = {condition.name: margins[condition.name] for condition in CALIBRATION}
    assert "against uniform" not in analysis.summarize(of_calibration, CALIBRATION)[Condition(0.0, "agci").name]


@pytest.mark.slow
def test_criteria_can_fail() -> None:
    margins = {condition.name: simulated(50, condition.beta or 0.0) for condition in RULER}
    for beta in BETAS:
        margins[Condition(beta, REPAIR).name] = margins[Condition(0.0).name]
    found = analysis.ruler_criteria(margins, analysis.summarize(margins, RULER), 50)
    assert [(criterion.name, criterion.met) for criterion in found] == [("monotone", True), ("repair", True)]
    margins[Condition(1.0).name], margins[Condition(2.0).name] = (margins[Condition(b).name] for b in (2.0, 1.0))
    margins[Condition(1.0, REPAIR).name] = margins[Condition(1.0, REPAIR).name] + 0.01
    found = analysis.ruler_criteria(margins, analysis.summarize(margins, RULER), 50)
    assert [criterion.met for criterion in found] == [False, False]
    few = criteria_text(analysis.ruler_criteria(margins, analysis.summarize(margins, RULER)))
    assert (
        few.startswith("not judged: monotone") and "; registered for 300 items, run on 50 items\nNOT MET: repair" in few
    )

    good = [ItemSet(False, "no difference shown", True, "more even")] * 92
    bad = [ItemSet(True, "less even", False, "cannot tell")]
    assert [criterion.met for criterion in analysis.calibration_criteria(good + 8 * bad)] == [True] * 4
    assert [criterion.met for criterion in analysis.calibration_criteria(good[:89] + 11 * bad)] == [False] * 4
    for sets, items, run in ((good[:3], 300, "3 sets of 300 items"), (good + 8 * bad, 10, "100 sets of 10 items")):
        for criterion in analysis.calibration_criteria(sets, items):
            assert criterion.judged == "not judged"
            assert criterion.found.endswith(f"; registered for 100 sets of 300 items, run on {run}")


@pytest.mark.slow
def test_item_sets_permute_the_cells_of_both_questions_alike() -> None:
    margins = {condition.name: simulated(60, condition.beta or 0.0, seed=1) for condition in CALIBRATION}
    margins[Condition(0.0, "agci").name] = margins[Condition(0.0).name] + 1
    for name in (NOTHING, "agci"):  # a bias at beta 0 vanishes with the permutation
        margins[Condition(0.0, name).name] = margins[Condition(0.0, name).name] + simulated(60, 5.0, seed=2)
    sets = list(analysis.item_sets(margins, items=40, sets=20))
    assert sum(found.effect_at_zero for found in sets) <= 4
    assert {found.verdict_at_zero for found in sets} == {"no difference shown"}
    assert all(found.effect for found in sets)
    again = list(analysis.item_sets(margins, items=40, sets=20))
    assert again == sets


@pytest.mark.slow
def test_the_command_writes_table_figure_and_numbers_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ruler", "--output_dir", str(tmp_path), "--processes", "1"]
    level = logging.getLogger("transformers_agci").level
    assert main([*words, "--items", "3"]) == 0
    assert logging.getLogger("transformers_agci").level == level, "later warnings are heard as before"
    said = capsys.readouterr()
    assert "met: repair" in said.out and "registered for 300 items, run on 3 items" in said.out
    assert "NOT MET" not in said.out
    records = (tmp_path / "margins.jsonl").read_text().splitlines()
    assert len(records) == 4, "the settings and three items"
    (tmp_path / "margins.jsonl").write_text("\n".join(records[:3]) + "\n" + records[3][:50])
    assert main([*words, "--items", "3"]) == 0
    assert (tmp_path / "margins.jsonl").read_text().splitlines() == records
    result = json.loads((tmp_path / "ruler.json").read_text())
    assert list(result["conditions"]) == [condition.name for condition in RULER]
    assert (tmp_path / "ruler.md").read_text().count("\n| ") == len(RULER) + 1  # with the line below the head
    with Image.open(tmp_path / "ruler.png") as image:
        assert image.width > 1500
    (tmp_path / "margins.jsonl").write_text(records[0].replace("0.5", "0.7") + "\n")
    assert main([*words, "--items", "3"]) == 2
    assert "with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_the_calibration_counts_its_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ruler", "--calibration", "--output_dir", str(tmp_path), "--processes", "1"]
    assert main([*words, "--pool", "12", "--items", "10", "--sets", "3"]) == 0
    result = json.loads((tmp_path / "calibration.json").read_text())
    assert len(result["sets"]) == 3
    assert [" of 3; registered for" in criterion["found"] for criterion in result["criteria"]] == [True] * 4
    assert main([*words, "--pool", "5", "--items", "10"]) == 2
    assert "--items must be at most --pool, 5, but is 10." in capsys.readouterr().err


def test_a_damaged_journal_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers_agci.experiments.ruler.run import ItemRun

    file = tmp_path / "margins.jsonl"
    settings = ItemRun(file, ("ruler", "items", 0), 3, RULER, 0.5, 1).settings()
    whole = [{"item": n, "margins": {c.name: [1.0] * 18 for c in RULER}} for n in range(3)]
    for damage in ({"item": 2}, {"margins": {}}, {"margins": {c.name: [float("nan")] * 18 for c in RULER}}):
        lines = [settings, whole[0], whole[1] | damage, whole[2]]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["ruler", "--items", "3", "--output_dir", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"agci: {file}:3 is not what the ruler writes there") and said.count("\n") == 1
    for first in (whole[0], None, [settings]):
        file.write_text("".join(json.dumps(line) + "\n" for line in [first, *whole]))
        assert main(["ruler", "--items", "3", "--output_dir", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert f"{file}:1 is damaged: the settings of the run are missing there" in said and said.count("\n") == 1
