"""`agci demo`: two processes, answers computed anew, and an end that says what the map shows."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tiny_checkpoints import Checkpoints

from transformers_agci.cli import main
from transformers_agci.experiments import demo
from transformers_agci.inference.progress import Progress


@pytest.mark.slow
def test_demo_from_start_to_end(
    tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded(Progress):
        def add(self, rows: int) -> None:
            super().add(rows)
            seen.append(self.done)

    seen: list[int] = []
    monkeypatch.setattr(demo, "Progress", Recorded)
    monkeypatch.setattr(demo, "LOOK_EVERY", 0.001)
    monkeypatch.setattr("transformers_agci.inference.progress.LOG_AT", (0.0,))
    model = str(tiny_checkpoint("qwen2_5_vl"))
    words = ["demo", "--items", "5", "--output_dir", str(tmp_path / "demo"), "--model", model]
    assert main(words) == 0
    said = capsys.readouterr()
    lines = said.out.strip().splitlines()
    assert lines[0].startswith("A decoder bias of known size, 1, is planted in the model")
    assert lines[1].startswith("180 answers: 5 items x 9 positions, Yes and No, lambda 0 and 0.5")
    assert "180 of 180 rows" in said.err
    assert seen == sorted(seen) and seen[-1] == 180
    assert set(seen) - {0, 180}, "rows are counted as they are answered, though each process writes a single block"
    for words_ in ("top_left", "all positions", "balanced accuracy, %", "sd over positions, Yes rows"):
        assert words_ in said.out, words_
    assert re.match(r"180 answers in \d+ s", lines[-3])
    assert lines[-2] == f"heat map: {tmp_path / 'demo' / 'heatmap.png'}"
    assert lines[-1].startswith("On 5 items, AGCI (lambda 0.5) against baseline (lambda 0): ")
    with Image.open(tmp_path / "demo" / "heatmap.png") as image:
        assert image.width > 1000
    for name in ("answers.lam0", "answers.lam0.5"):
        assert len((tmp_path / "demo" / f"{name}.jsonl").read_text().splitlines()) == 90
        manifest = json.loads((tmp_path / "demo" / f"{name}.manifest.json").read_text())
        runs = manifest["runs"]
        assert manifest["settings"]["planted_bias"] == 1.0
        assert sorted(run["shard"] for run in runs) == ["0/2", "1/2"]
    assert not list((tmp_path / "demo").glob("*.parts"))

    first = (tmp_path / "demo" / "answers.lam0.5.jsonl").read_bytes()
    (tmp_path / "demo" / "answers.lam0.5.jsonl").write_text("left from before\n")
    assert main([*words, "--processes", "1"]) == 0, "nothing is taken over from an earlier run"
    assert (tmp_path / "demo" / "answers.lam0.5.jsonl").read_bytes() == first, "and one process gives the same bytes"


@pytest.mark.slow
def test_demo_says_what_a_process_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--items", "1", "--output_dir", str(tmp_path / "demo"), "--model", "/nowhere/model"]) == 2
    error = capsys.readouterr().err
    assert "A process of the demo failed; it said: There is no model folder /nowhere/model" in error


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--items", "0"], "--items must be at least 1, but is 0."),
        (["--processes", "0"], "--processes must be at least 1, but is 0."),
        (["--output_dir", "file/demo"], "--output_dir: 'file/demo' cannot be written"),
    ],
)
def test_mistakes_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["demo", *words]) == 2
    assert sentence in capsys.readouterr().err
