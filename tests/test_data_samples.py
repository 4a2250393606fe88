"""The shipped samples: sound, small, and what our own builder makes of the atlas."""

import json
from pathlib import Path
from typing import Any

import PIL
import pytest
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.built_set import read_manifest
from transformers_agci.data.check import check
from transformers_agci.data.instruct import to_sharegpt
from transformers_agci.data.probe_rows import ProbeRow

pytest.importorskip("datasets")
ROOT = Path(__file__).parents[1]
FOLDERS = ("probe_datasets", "similarity_data", "data")
NAME = "sample_noto_840_840"


@pytest.mark.parametrize(
    ("rows", "items", "answers"),
    [
        (f"probe_datasets/{NAME}.json", 4, {"Yes": 36}),
        (f"probe_datasets/{NAME}_negatives.json", 4, {"No": 36}),
        (f"similarity_data/{NAME}.json", 4, {"Yes": 36}),
    ],
)
def test_the_shipped_samples_pass_our_own_check(rows: str, items: int, answers: dict[str, Any]) -> None:
    path = ROOT / rows
    report = check(path, path.parent / "images")
    assert report.errors == []
    assert (report.items, report.answers, report.sizes) == (items, answers, {(840, 840): 36})
    assert any("every byte is as" in note for note in report.notes)


def test_the_shipped_conversations_are_whole() -> None:
    rows = json.loads((ROOT / "data" / "sample_noto_for_llava1.5.json").read_text())
    assert json.loads((ROOT / "data" / "sample_noto.json").read_text()) == [to_sharegpt(row) for row in rows]
    assert (
        main(
            [
                "data",
                "check-images",
                str(ROOT / "data" / "sample_noto_for_llava1.5.json"),
                "--image_root",
                str(ROOT / "data"),
            ]
        )
        == 0
    )
    info = json.loads((ROOT / "data" / "dataset_info.json").read_text())
    assert info["sample_noto"]["file_name"] == "sample_noto.json"
    assert set(info) == {"sample_noto", "llava_v1_5_instruct_sample_10k"}


def test_the_readmes_show_a_row_that_is_there() -> None:
    for folder in ("probe_datasets", "similarity_data"):
        shown = [line.strip() for line in (ROOT / folder / "README.md").read_text().splitlines()]
        assert [line for line in shown if line.startswith('{"id"')]
        lines = (ROOT / folder / f"{NAME}.json").read_text().splitlines()
        rows = {line for line in shown if line.startswith('{"id"')}
        assert {line for line in rows if '"grid"' not in line} <= set(lines)
        for line in rows:
            ProbeRow.parse(json.loads(line), folder)


def shipped(root: Path) -> dict[str, Path]:
    """Tracked files only: what a user built beside the samples does not count."""
    names = ("sample_noto*", "images/noto_*.jpg", "dataset_info.json")
    return {
        str(path.relative_to(root)): path for folder in FOLDERS for name in names for path in (root / folder).glob(name)
    }


def test_the_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in shipped(ROOT).values()) < 2_990_000


@pytest.mark.slow
def test_rebuilding_gives_the_shipped_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "build-samples", "--root", str(tmp_path)]) == 0
    rebuilt, there = shipped(tmp_path), shipped(ROOT)
    assert set(rebuilt) == set(there)
    written_by = read_manifest(ROOT / "probe_datasets" / f"{NAME}.manifest.json")["settings"]["pillow"]
    for name, path in there.items():
        if written_by == PIL.__version__:
            assert rebuilt[name].read_bytes() == path.read_bytes(), name
        elif path.suffix == ".jpg":
            with Image.open(path) as old, Image.open(rebuilt[name]) as new:
                assert old.size == new.size
        elif "manifest" not in name:
            assert rebuilt[name].read_bytes() == path.read_bytes(), name
