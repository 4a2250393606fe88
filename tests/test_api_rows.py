"""The Python API's rows: images of one's own as a probe set, composites, tables in Arrow."""

import json
from pathlib import Path
from typing import Any

import api_run
import pytest
from api_run import QUIET, coloured
from PIL import Image

import transformers_agci
from transformers_agci.api.images import encoded
from transformers_agci.api.probe import ProbeRun
from transformers_agci.api.rows import to_arrow
from transformers_agci.errors import InputError
from transformers_agci.inference.engine import Engine

data = api_run.data  # fixture
model = api_run.model  # fixture
run = api_run.run  # fixture


@pytest.mark.slow
def test_images_of_ones_own_become_a_probe_set(model: Engine, tmp_path: Path) -> None:
    captions = [f"the card with {number} on it" for number in range(10)]
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.png")
        coloured(number).save(files[-1])
    given = [*files[:5], *(coloured(number) for number in range(5, 10))]
    data = transformers_agci.composites(given, captions, tmp_path / "set", items=3, canvas=252)
    assert data.rows == 3 * 18
    first = next(iter(data.items.values()))
    assert (first[0].caption, Image.open(data.img_path / first[0].image).size) == (captions[0], (252, 252))
    again = transformers_agci.composites(given, captions, tmp_path / "set", items=3, canvas=252)
    assert again.settings == data.settings
    assert len(transformers_agci.probe(model, data, [0], **QUIET).to_pandas()) == 54


@pytest.mark.parametrize(
    ("images", "captions", "said"),
    [
        ([b"", b""], None, "a caption for each of the 2 images, but there are none"),
        ([b""], ["a", "b"], "a caption for each of the 1 images, but there are 2"),
        (["/nowhere.png"], ["a"], "Image 0: /nowhere.png cannot be read"),
        ([7], ["a"], "Image 0 must be a file, a PIL image or encoded bytes, but is a int"),
        ([coloured(0)], ["a"], "needs at least 10 good pairs"),
    ],
)
def test_images_that_are_refused(images: list[Any], captions: list[str] | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        transformers_agci.composites(images, captions)


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr"])
def test_images_of_any_mode_of_pil_are_encoded(mode: str) -> None:
    assert encoded(Image.new(mode, (4, 4)), "It").startswith(b"\x89PNG")


def test_rows_need_their_images() -> None:
    with pytest.raises(InputError, match="`images` is needed with `rows`"):
        transformers_agci.probe_data("rows.json")
    with pytest.raises(InputError, match="belong to `rows`"):
        transformers_agci.probe_data(images="x")
    with pytest.raises(InputError, match="`kind` must be one of probe, similarity"):
        transformers_agci.published_data("probes")


def test_a_column_of_several_kinds_is_json_in_arrow() -> None:
    rows = [{"a": 1, "b": {"x": 1}, "c": "é"}, {"a": 2.5, "b": [1], "d": True}]
    table = to_arrow(rows)
    assert table.to_pylist() == [
        {"a": 1.0, "b": '{"x": 1}', "c": "é", "d": None},
        {"a": 2.5, "b": "[1]", "c": None, "d": True},
    ]


def test_equal_labels_and_columns_of_ones_own_stay_apart(run: ProbeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no two of them alike"):
        transformers_agci.read_probe(*run.files, labels=["x", "x"]).statistics(draws=10)
    path = tmp_path / "own.jsonl"
    rows = [{**row, "result": "other", "lambda": 99} for row in map(json.loads, run.files[0].read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = transformers_agci.read_probe(path).to_pandas()
    assert set(table["result"]) == {"own"} and set(table["input_result"]) == {"other"} and set(table["lambda"]) == {99}


def test_an_unreadable_reply_is_not_right_and_half_a_surrogate_pair_goes_into_arrow(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    replies = ["Yes", "\ud800", ""]
    rows = [{"image": f"{n}_0.jpg", "position": "top_left", "answer": "Yes"} for n in range(3)]
    lines = [json.dumps({**row, "prediction": reply}) for row, reply in zip(rows, replies, strict=True)]
    path.write_text("\n".join(lines))
    table = transformers_agci.read_probe(path).to_arrow()
    assert table["correct"].to_pylist() == [True, False, False] and table["prediction"][1].as_py() == "\\ud800"


def test_composites_of_the_atlas_stay_in_a_named_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of somebody's own")
    data = transformers_agci.probe_data(items=1, folder=tmp_path)
    kept = data.img_path
    del data
    assert kept.is_relative_to(tmp_path) and len(list(kept.iterdir())) == 9
    assert (tmp_path / "notes.txt").read_text() == "of somebody's own"
    with pytest.raises(InputError, match="`folder` is where composites"):
        transformers_agci.probe_data("rows.json", "images", folder=tmp_path)
