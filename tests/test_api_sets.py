"""Sets built, checked and fetched through the Python API, as by the commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from api_run import QUIET, lines_of
from PIL import Image

import transformers_agci as agci
from transformers_agci.cli import main


def coloured(number: int) -> Image.Image:
    """An image of its own for each number."""
    return Image.radial_gradient("L").resize((120, 120)).point(lambda value: (value * (number + 1)) % 256)


def test_a_built_set_is_the_commands_bytes_and_either_goes_on_in_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = agci.build_probe(kind="words", items=2, cols=2, rows=2, canvas=126, name="w", folder=tmp_path / "a", **QUIET)
    words = ["--kind", "words", "--items", "2", "--cols", "2", "--rows", "2", "--canvas", "126", "--name", "w"]
    command = ["data", "build-probe", *words, "--workers", "1", "--output_dir"]
    said = lines_of([*command, tmp_path / "b"], capsys)
    assert said.startswith(
        ours.text.replace(f"{tmp_path / 'a'}", f"{tmp_path / 'b'}") + "\nnext: agci probe --eval_file "
    )
    assert [path.name for path in sorted((tmp_path / "a").rglob("*"))] == [
        path.name for path in sorted((tmp_path / "b").rglob("*"))
    ]
    assert "2 items already done" in lines_of([*command, tmp_path / "a"], capsys)
    again = agci.build_probe(
        kind="words", items=2, cols=2, rows=2, canvas=126, name="w", folder=tmp_path / "b", **QUIET
    )
    assert (again.already_done, again.sha256, again.data.rows) == (2, ours.sha256, 16)
    assert "<td>8</td>" in ours._repr_html_()


def test_images_in_memory_from_any_iterable_become_a_similarity_set(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [coloured(n) for n in range(2)], "caption": ["zero", "one"]})
    grid = {"canvas": 126, "box": 40, "gutter": 2, **QUIET}
    built = agci.build_similarity(frame["image"], frame["caption"], tmp_path / "s", **grid)
    assert (built.items, built.composites, built.negatives_file, built.data.rows) == (2, 18, None, 18)
    again = agci.build_similarity((coloured(n) for n in range(2)), ("zero", "one"), tmp_path / "s", **grid)
    assert (again.already_done, again.sha256) == (2, built.sha256)


def test_other_images_in_the_same_folder_are_no_old_set(tmp_path: Path) -> None:
    grid = {"folder": tmp_path, "canvas": 126, "box": 40, "gutter": 2, **QUIET}
    first = agci.build_similarity([coloured(0)], ["zero"], **grid)
    with pytest.raises(agci.InputError, match="holds other images or captions than these"):
        agci.build_similarity([coloured(1)], ["zero"], **grid)
    with pytest.raises(agci.InputError, match="holds other images or captions than these"):
        agci.build_similarity([coloured(0)], ["one"], **grid)
    assert agci.build_similarity([coloured(1)], ["zero"], overwrite=True, **grid).sha256 != first.sha256


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "`source` is needed for `kind` captions"),
        ({"source": "x", "kind": "words"}, "`kind` words draws its sub-images: omit `source`"),
        ({"kind": "word"}, "`kind` must be one of captions, words, .* but is 'word'"),
        ({"kind": "words", "rows": 0}, "`rows` must be a whole number of at least 1, but is 0"),
        ({"kind": "words", "target_sizes": [8.5]}, "`target_sizes` must be a whole number of at least 1, but is 8.5"),
        ({"kind": "words", "target_sizes": 8}, "`target_sizes` must be a list of lengths in pixels, but is 8"),
        ({"kind": "words", "gutter": "x"}, "`gutter` must be a number, but is 'x'"),
        ({"source": "x", "captions": ["a"]}, "A list of `captions` goes with a list of images"),
        (
            {"source": {"a": 1}},
            "`source` must be a list of images: files, PIL images or encoded bytes, but is {'a': 1}",
        ),
        ({"source": [b"x"], "captions": "a"}, "`captions` must be a list of texts, one for each image, but is 'a'"),
        ({"source": []}, "The list of images is empty"),
        ({"source": pd.DataFrame({"a": [1]})}, "but is a DataFrame: give a column of it"),
        ({"source": [b"x"], "captions": [3]}, "`captions` must be texts, but one is 3"),
        ({"kind": "digits", "captions": ["a"]}, "`kind` digits draws its sub-images: omit `captions`, which is of"),
        ({"kind": "digits", "caption_column": "c"}, "omit `caption_column`, which is of a `source`"),
        ({"kind": "digits", "split": "train"}, "omit `split`, which is of a `source`"),
        ({"source": [b"x"], "captions": ["a"], "image_column": "i"}, "`image_column` is of a source of captioned"),
        ({"source": [b"x"], "captions": ["a"], "split": "train"}, "`split` is of a source of captioned images; omit"),
    ],
)
def test_sets_that_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(agci.InputError, match=said):
        agci.build_probe(**given, **QUIET)


def test_a_check_says_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = agci.build_probe(kind="shapes", items=2, canvas=126, folder=tmp_path, negatives=False, **QUIET)
    assert agci.check_data(built, **QUIET).passed
    assert agci.check_data(built.data, **QUIET).sizes == {(126, 126): 18}
    next(built.img_path.iterdir()).unlink()
    found = agci.check_data(str(built.rows_file), built.img_path, **QUIET)
    assert (found.passed, len(found.errors), found.items) == (False, 2, 2)  # the image, and the set's hash
    assert lines_of(["data", "check", built.rows_file, "--img_path", built.img_path], capsys, 1) == f"{found.text}\n"
    assert "give `img_path`" in agci.check_data(built.rows_file, **QUIET).notes[0]
    with pytest.raises(agci.InputError, match="made from the embedded atlas"):
        agci.check_data(agci.probe_data(items=1), **QUIET)
    with pytest.raises(agci.InputError, match="`rows` must be a rows file, or what `build_probe` gives, but is 5"):
        agci.check_data(5)


def test_the_command_refuses_what_no_drawn_set_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "build-probe", "--kind", "digits", "--split", "test", "--output_dir", str(tmp_path / "d")]
    assert main(words) == 2
    assert "--kind digits draws its sub-images: omit --split, which is of a --source" in capsys.readouterr().err


def test_the_negatives_of_a_set_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = agci.build_probe(kind="shapes", items=2, canvas=126, folder=tmp_path, **QUIET)
    sound = agci.check_data(built, **QUIET)
    assert (sound.passed, sound.rows, sound.items, sound.sizes) == (True, 36, 4, {(126, 126): 18})
    assert sound.answers == {"Yes": 18, "No": 18}
    command = ["data", "check", "--img_path", built.img_path]
    said = [lines_of([*command, file], capsys) for file in sound.files]
    assert sound.files == (built.rows_file, built.negatives_file)
    assert "".join(said) == f"{sound.text}\n"
    rows = built.negatives_file.read_text().splitlines(keepends=True)
    built.negatives_file.write_text("".join(rows[1:]))
    for whole in (built, agci.published_data("probe", tmp_path)):
        found = agci.check_data(whole, **QUIET)
        assert (found.passed, found.rows) == (False, 35)
        assert [error for error in found.errors if "must have each of the nine positions once" in error]
        assert len(found.errors) == 2  # and once the set's hash


def test_a_broken_off_download_goes_on_and_a_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def answer(name: str, repo_type: str, local_dir: Path) -> None:
        asked.append(local_dir.relative_to(tmp_path).as_posix())
        shutil.copytree(copy, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    data = agci.probe_data(items=1, folder=tmp_path)
    copy = tmp_path / "probe_set"
    assert agci.published_data("probe", copy).rows == data.rows == 18
    assert asked == []
    (tmp_path / "new" / "AGCI_Probe_Dataset").mkdir(parents=True)  # what an interrupted download leaves
    assert agci.published_data("probe", tmp_path / "new").rows == 18
    with pytest.raises(agci.InputError, match=r"`folder` .*rows\.json is a file"):
        (tmp_path / "rows.json").touch()
        agci.published_data("probe", tmp_path / "rows.json")
    (tmp_path / "empty").mkdir()
    agci.published_data("probe", tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    assert asked == ["new/AGCI_Probe_Dataset", "empty/AGCI_Probe_Dataset"]


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    asked = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"id": str(n), "image": f"coco/{n}.jpg", "conversations": asked} for n in range(4)]
    (tmp_path / "coco").mkdir()
    for n in range(3):
        (tmp_path / "coco" / f"{n}.jpg").write_bytes(b"")
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([*rows, {"id": "5", "conversations": [{"from": "gpt", "value": "Yes"}]}]))
    return path


def test_a_sample_is_the_commands(mix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = agci.sample_instruct(mix, tmp_path, n=2, seed=1, folder=tmp_path / "a")
    options = ["--mix", mix, "--image_root", tmp_path, "--n", "2", "--seed", "1", "--output_dir"]
    said = lines_of(["data", "sample-instruct", *options, tmp_path / "b"], capsys)
    assert said == sample.text.replace(f"{tmp_path / 'a'}", f"{tmp_path / 'b'}") + "\n"
    for file in sample.files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert sample.to_pandas()["image"].str.startswith("coco/").tolist() == [True, True]
    assert dict(sample.skipped) == {"missing image in coco": 1, "text only": 1}
    assert agci.sample_instruct(mix, tmp_path, n=2, seed=1).rows == sample.rows  # and no file is written
    assert not list(tmp_path.glob("*sample*"))
    with pytest.raises(agci.InputError, match="Only 3 of 9 conversations"):
        agci.sample_instruct(mix, tmp_path, n=9)


def test_missing_images_and_scienceqa_are_the_commands(
    mix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = agci.check_images(mix, tmp_path)
    assert checked.rows == [{"folder": "coco", "named": 4, "missing": 1, "first_missing": ["coco/3.jpg"]}]
    assert lines_of(["data", "check-images", mix, "--image_root", tmp_path], capsys, 1) == f"{checked.text}\n"
    problems, splits = tmp_path / "problems.json", tmp_path / "splits.json"
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "image": "image.png"}
    problems.write_text(json.dumps({"7": problem}))
    splits.write_text(json.dumps({"test": ["7"]}))
    built = agci.build_scienceqa(problems, splits, output=tmp_path / "a.json")
    command = ["data", "build-scienceqa", "--problems", problems, "--pid_splits", splits, "--output"]
    assert lines_of([*command, tmp_path / "a.json"], capsys) == f"{built.text}\n"
    assert json.loads((tmp_path / "a.json").read_text()) == built.rows
    assert built.rows[0]["image"] == "7/image.png"
