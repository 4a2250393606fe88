"""`--report_to`: what a tracker of runs is given by the probe and by a benchmark."""

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.commands.options.figures import TRACKERS, add_tracking_option
from transformers_agci.commands.parser import Parser


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A trackio that keeps what it is given."""
    found: list[dict[str, Any]] = []
    module = types.ModuleType("trackio")
    module.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    module.init = lambda **given: found.append(given)
    module.log = lambda figures: found[-1].update(figures=figures)
    module.finish = lambda: found[-1].update(finished=True)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return found


def test_a_probe_is_one_run_per_lambda(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    answers = tmp_path / "A.jsonl"
    words = ["--items", "1", "--quiet", "--global_context_lambda", "0", "0.5", "--answer_file", str(answers)]
    assert main(["probe", *words, "--report_to", "trackio"]) == 0
    assert [run["name"] for run in runs] == ["A.lam0", "A.lam0.5"]
    assert [run["config"]["lambda"] for run in runs] == [0, 0.5]
    for run in runs:
        assert run["project"] == "transformers-agci" and run["finished"]
        figures = run["figures"]
        assert figures.keys() == {"yes_accuracy", "no_accuracy", "balanced_accuracy"}
        assert figures["balanced_accuracy"] == (figures["yes_accuracy"] + figures["no_accuracy"]) / 2


@pytest.mark.slow
def test_a_benchmark_hands_over_its_score(
    runs: list[dict[str, Any]], tmp_path: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    data = samples.write_json(tmp_path / "q.json", samples.scienceqa_questions())
    for row in samples.scienceqa_questions():
        if row.get("image"):
            (tmp_path / row["image"]).parent.mkdir(exist_ok=True)
            Image.effect_noise((84, 84), 90).convert("RGB").save(tmp_path / row["image"])
    words = ["--model", str(tiny_checkpoint("llava")), "--data", str(data), "--answer_file", str(tmp_path / "S.jsonl")]
    assert main(["benchmark", "scienceqa", *words, "--quiet", "--report_to", "trackio"]) == 0
    [run] = runs
    assert run["name"] == "S" and run["config"]["lambda"] == 0
    assert 0 <= run["figures"]["accuracy_pct"] <= 100


def test_a_tracker_that_is_not_installed_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers_agci.experiments.tracking.find_spec", lambda name: None)
    words = ["--items", "1", "--answer_file", str(tmp_path / "A.jsonl")]
    assert main(["probe", *words, "--report_to", "wandb"]) == 2
    assert capsys.readouterr().err == "agci: --report_to wandb: the package is not installed; pip install wandb.\n"
    assert not (tmp_path / "A.jsonl").exists()
    parser = Parser()
    add_tracking_option(parser)
    assert parser._actions[-1].choices == TRACKERS
