"""What eval/ says of the benchmarks: every figure is explained, and its sample is scored."""

import shlex
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_rows import EVERY, ROOT
from benchmark_samples import write_json, write_rows

from transformers_agci.cli import main


@pytest.mark.parametrize("name", EVERY)
def test_the_readme_explains_every_figure(name: str, tmp_path: Path) -> None:
    """What the result file holds and what eval/<Benchmark>/README.md lists must agree."""
    from transformers_agci.experiments.benchmarks import benchmark

    declared = benchmark(name)
    text = (ROOT / "eval" / declared.data_folder / "README.md").read_text()
    given: dict[str, Any] = {
        "scienceqa": lambda: [{**row, "prediction": "A"} for row in samples.scienceqa_questions()],
        "pope": lambda: [
            {"question_id": n, "category": c, "answer": "yes", "prediction": "Yes"}
            for c in samples.POPE_LABELS
            for n in range(2)
        ],
        "textvqa": lambda: [{**row, "prediction": "A"} for row in samples.textvqa_questions()],
        "hallusionbench": lambda: [{**row, "prediction": "A"} for row in samples.hallusionbench_questions()],
        "crpe": lambda: [{**row, "prediction": "A"} for row in samples.crpe_questions()],
        "mmmu_pro": lambda: samples.mmmu_rows(["A"] * 5),
    }[name]()
    from transformers_agci.experiments.benchmarks.declaration import Inputs

    annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations()) if name == "textvqa" else None
    found = declared.scoring.score(Inputs((write_rows(tmp_path / "a.jsonl", given),), annotations=annotations)).figures
    keys = set(found)
    if "categories" in found:
        keys = (keys - {"categories"}) | set(next(iter(found["categories"].values())))
    missing = {key for key in keys if f"`{key}`" not in text and f".{key}`" not in text}
    assert not missing
    for command in (f"agci benchmark {name} ", f"agci score {name} "):
        assert command in text
    assert f"| {declared.title} |" in (ROOT / "eval" / "README.md").read_text()


@pytest.mark.parametrize("name", EVERY)
def test_the_sample_of_the_readme_is_scored(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers_agci.experiments.benchmarks import benchmark

    monkeypatch.chdir(ROOT)
    text = (ROOT / "eval" / benchmark(name).data_folder / "README.md").read_text()
    command = next(line.strip() for line in text.splitlines() if "/sample/" in line)
    assert main(shlex.split(command)[1:]) == 0
    assert "95 % interval" in capsys.readouterr().out
