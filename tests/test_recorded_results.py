"""What the version before wrote is still read, continued and compared: recorded_results/ holds it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmark_samples import pope_label_files, pope_questions, write_rows
from tiny_checkpoints import random_image

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.inference.load import LoadOptions, load

RECORDED = Path(__file__).parent / "recorded_results"
MISSING = "1_3.png"  # the one bad row of the data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recorded files, and the data that they were made of; the working directory."""
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number in range(18):
        item, cell = divmod(number, 9)
        name = f"{item}_{cell}.png"
        if name != MISSING:
            random_image(number, 90, 90).save(data / name)
        caption = {"caption": f"a dog {item}", "position": POSITIONS[cell], "answer": "Yes"}
        rows.append({"id": number, "image": name, **caption})
    write_rows(data / "rows.json", rows)
    for number in range(2):
        random_image(number, 90, 90).save(tmp_path / "pope" / f"COCO_{number}.jpg")
    pope_label_files(tmp_path / "pope")
    write_rows(tmp_path / "pope" / "questions.jsonl", pope_questions())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def agci(tiny_checkpoint: Callable[[str], Path], folder: Path) -> Callable[..., int]:
    """Run a command on the tiny checkpoint. Its weights are not the recorded ones' on every machine, so the recorded
    manifests get this checkpoint's identity: under the names that they have for it."""
    model = tiny_checkpoint("qwen2_5_vl")
    identity = json.loads(json.dumps(dict(load(LoadOptions(str(model), device="cpu")).identity)))
    for file in folder.glob("*/*.manifest.json"):
        manifest = json.loads(file.read_text())
        assert set(flat(manifest["settings"]["model"])) == set(flat(identity))
        manifest["settings"]["model"] = identity
        file.write_text(json.dumps(manifest))

    def run(*words: str) -> int:
        return main([*words, "--model_path", str(model), "--device", "cpu", "--quiet"])

    return run


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


ROWS = ("--eval_file", "data/rows.json", "--img_path", "data")
PROBE = ("probe", *ROWS, "--answer_file", "probe/A.jsonl", "--global_context_lambda", "0", "0.5", "--batch_size", "3")
SHARDED = ("probe", *ROWS, "--answer_file", "sharded/A.jsonl", "--global_context_lambda", "0.5", "--batch_size", "2")
POPE = ("benchmark", "pope", "--data", "pope/questions.jsonl", "--image_root", "pope", "--annotations", "pope")

# command, its result file, rows recorded, rows of the whole input that have a result
CONTINUED = {
    "probe": ((*PROBE, "--text_only"), "probe/A.lam0.5.jsonl", 17, 17),
    "sharded": (SHARDED, "sharded/A.jsonl", 0, 17),
    "similarity": (
        ("similarity", *ROWS, "--answer_file", "similarity/S.jsonl", "--batch_size", "3"),
        "similarity/S.jsonl",
        12,
        17,
    ),
    "occlusion": (
        ("occlusion", *ROWS, "--output_dir", "occlusion", "--items", "2", "--max_new_tokens", "4", "--batch_size", "5"),
        "occlusion/occlusion.jsonl",
        3,
        17,
    ),
    "flow": (
        ("flow", *ROWS, "--output_dir", "flow", "--items", "2", "--layers", "0", "--global_context_lambda", "0.5"),
        "flow/flow.jsonl",
        2,
        17,
    ),
    "benchmark": (
        (*POPE, "--answer_file", "benchmark/P.jsonl", "--global_context_lambda", "0", "--batch_size", "2"),
        "benchmark/P.jsonl",
        12,
        12,
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", CONTINUED)
def test_a_recorded_run_is_continued(agci: Callable[..., int], folder: Path, kind: str) -> None:
    words, name, before, after = CONTINUED[kind]
    file = folder / name
    recorded = file.read_bytes() if file.exists() else b""
    assert len(recorded.splitlines()) == before
    manifest = json.loads(file.with_suffix(".manifest.json").read_text())
    assert agci(*words) == (0 if kind == "benchmark" else 1)  # one row has no image
    found = file.read_bytes()
    assert found.startswith(recorded)
    assert len(found.splitlines()) == after
    names = [list(json.loads(line)) for line in found.splitlines()]
    assert names == [names[0]] * after
    now = json.loads(file.with_suffix(".manifest.json").read_text())
    assert (now["settings"], now["rows"], now["blocks"]) == (manifest["settings"], manifest["rows"], manifest["blocks"])
    assert now["runs"][:-1] == manifest["runs"]
    assert set(manifest["runs"][-1]) - {"git_commit"} <= set(now["runs"][-1])


def test_the_recorded_shard_keeps_its_block(agci: Callable[..., int], folder: Path) -> None:
    block = json.loads((folder / "sharded" / "A.parts" / "1-of-2.jsonl").read_text())
    assert agci(*SHARDED, "--shard", "0/2") == 0
    assert main(["merge-shards", "sharded/A.jsonl"]) == 1  # with the recorded shard's bad row
    rows = [json.loads(line) for line in (folder / "sharded" / "A.jsonl").read_text().splitlines()]
    assert (len(rows), rows[9:]) == (17, block["rows"])
    assert not (folder / "sharded" / "A.parts").exists()


@pytest.mark.parametrize("kind", CONTINUED)
def test_other_settings_than_the_recorded_are_refused(
    agci: Callable[..., int], folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, name, *_ = CONTINUED[kind]
    before = {path: path.read_bytes() for path in (folder / name).parent.rglob("*") if path.is_file()}
    change, said = {"flow": (("--layers", "1"), "layers is [0] there and [1] now")}.get(
        kind, (("--batch_size", "4"), "batch_size is")
    )
    assert agci(*words, *change) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / name).parent.rglob("*") if path.is_file()} == before


def test_recorded_results_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["probe/A.lam0.jsonl", "probe/A.lam0.5.jsonl"]
    assert main(["metrics", "--results_file", *files, "--draws", "20"]) == 0
    said = capsys.readouterr().out
    assert "baseline (lambda 0)" in said and "AGCI (lambda 0.5)" in said  # from the manifests
    assert main(["metrics-similarity", "--results_file", "similarity/S.jsonl", "--draws", "20"]) == 0
    assert "12 rows" in capsys.readouterr().out
    code = main(["occlusion-maps", "--prob_results_dir", "occlusion", "--output_path", "maps.png", "--draws", "20"])
    assert code == 1  # 15 of 18 images are unfinished
    assert "3 images from occlusion" in capsys.readouterr().out
