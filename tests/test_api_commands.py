"""Every command has its function in Python, or a reason why not; and the functions of data and checkpoints do it."""

import argparse
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import transformers_agci as agci
from transformers_agci.api.conversion import ConvertedCheckpoint
from transformers_agci.cli import COMMANDS, main
from transformers_agci.embedded import embedded_model_path

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"progress": False}
# command -> its function, whose arguments are called as the command's options
ALIKE = {
    "demo": agci.demo,
    "data check": agci.check_data,
    "data build-probe": agci.build_probe,
    "data build-similarity": agci.build_similarity,
    "data build-scienceqa": agci.build_scienceqa,
    "data sample-instruct": agci.sample_instruct,
    "data check-images": agci.check_images,
    "set-lambda": agci.set_lambda,
    "convert-llava": agci.convert_llava,
    "score": agci.score,
    "check-recipe": agci.check_recipe,
    "train-lora": agci.train_lora,
    "merge-lora": agci.merge_lora,
}
NO_TORCH = ("build", "check", "conversations", "families", "score", "set_lambda", "training", "results")
# option -> what stands for it in Python: another argument, or "" where a result's method or a value does
RENAMED = {"output_dir": "folder", "file": "rows", "remove": "", "json": "", "items": "", "model": ""}


def coloured(number: int) -> Image.Image:
    """An image of its own for each number."""
    return Image.radial_gradient("L").resize((120, 120)).point(lambda value: (value * (number + 1)) % 256)


def lines_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().out


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_command_stands_in_the_table_with_its_function_or_a_reason() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `agci ([^`]+)` \| (.+?) \| ?(.*?) ?\|$", page, flags=re.MULTILINE)
    assert [words for words, _, _ in rows] == [command.words for command in COMMANDS]
    for words, function, remark in rows:
        assert function.strip("`") in agci.__all__ if function != "-" else len(remark) > 20, words


@pytest.mark.parametrize("words", ALIKE)
def test_options_are_arguments_of_the_same_name(words: str) -> None:
    command = next(command for command in COMMANDS if command.words == words)
    known = set(inspect.signature(ALIKE[words]).parameters)
    parser = argparse.ArgumentParser()
    command.load().add_arguments(parser)
    for action in parser._actions:
        name = RENAMED.get(action.dest, action.dest)
        if name not in ("help", "") and action.dest not in known:
            assert name in known, action.dest


def test_what_needs_no_model_loads_no_torch() -> None:
    names = [name for name, module in agci._PUBLIC.items() if module.rpartition(".")[2] in NO_TORCH]
    assert len(names) == 14
    script = f"import sys, transformers_agci\nfor name in {names}: getattr(transformers_agci, name)\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# --- sets ----------------------------------------------------------------------------------------------------------


def test_a_built_set_is_the_commands_bytes_and_either_goes_on_in_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = agci.build_probe(kind="words", items=2, cols=2, rows=2, canvas=126, name="w", folder=tmp_path / "a", **QUIET)
    words = ["--kind", "words", "--items", "2", "--cols", "2", "--rows", "2", "--canvas", "126", "--name", "w"]
    command = ["data", "build-probe", *words, "--workers", "1", "--output_dir"]
    said = lines_of([*command, tmp_path / "b"], capsys)
    assert said == ours.text.replace(f"{tmp_path / 'a'}", f"{tmp_path / 'b'}") + "\n"
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


def test_paths_that_are_none_and_a_folder_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("", " ", "a\0b"):
        with pytest.raises(agci.InputError, match="`folder` must be a file or folder, but is"):
            agci.probe_data(items=1, folder=path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert agci.probe_data(items=1, folder="~/set").img_path.is_relative_to(tmp_path / "set")
    rows = next((tmp_path / "set" / "probe_set").glob("*.json*"))
    home, images = f"~/{rows.relative_to(tmp_path)}", "~/set/probe_set/images"
    assert agci.probe_data(home, Path(images)).source == str(rows)
    assert agci.check_data(home, images, **QUIET).files == (rows,)
    assert agci.read_probe(home, home).files == (rows, rows)
    shutil.copy(embedded_model_path() / "config.json", tmp_path)
    assert agci.set_lambda("~", 0.5).folder == tmp_path
    monkeypatch.chdir(tmp_path)
    assert agci.set_lambda("~", None, output="~nobody-of-this-name").folder.name == "~nobody-of-this-name"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: agci.probe(lambdas=[]), "`lambdas` must name at least one lambda"),
        (lambda: agci.probe(lambdas=[0.5, 0.5]), "`lambdas` names a lambda twice: 0.5, 0.5"),
        (lambda: agci.similarity(seed=-1), "`seed` must be a whole number of at least 0, but is -1"),
        (lambda: agci.flow(seed=-1), "`seed` must be a whole number of at least 0, but is -1"),
        (lambda: agci.occlusion(seed=-1), "`seed` must be a whole number of at least 0, but is -1"),
        (lambda: agci.similarity(data=agci.probe_data(items=1), items=2), "`items` is for the embedded atlas"),
        (lambda: agci.read_probe([]), "`files` is an empty list"),
        (lambda: agci.read_similarity("nowhere.jsonl"), "nowhere.jsonl"),
        (lambda: agci.sample_instruct("mix.json", ".", n=1, name="x"), "`name` is of the files that are written to"),
    ],
)
def test_what_was_taken_for_something_else(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(agci.InputError, match=said):
        call()


def test_one_tensor_and_one_file_are_no_plural() -> None:
    made = ConvertedCheckpoint(Path("o"), 1, 1, (0, 1), {}, True)
    assert made.text == "o: 1 tensor in 1 file, embeddings grown from 0 to 1 row."


# --- conversations -------------------------------------------------------------------------------------------------


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


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_lambda_is_set_copied_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "c"
    checkpoint.mkdir()
    shutil.copy(embedded_model_path() / "config.json", checkpoint)
    changed = agci.set_lambda(checkpoint, 0.5)
    assert (changed.folder, changed.lam) == (checkpoint, 0.5)
    assert json.loads((checkpoint / "config.json").read_text())[agci.LAMBDA_KEY] == 0.5
    assert lines_of(["set-lambda", checkpoint, "0.5"], capsys) == f"{agci.set_lambda(checkpoint, 0.5).text}\n"
    assert agci.set_lambda(checkpoint, 0.25, output=tmp_path / "d").folder == tmp_path / "d"
    agci.set_lambda(checkpoint, None)
    assert agci.LAMBDA_KEY not in json.loads((checkpoint / "config.json").read_text())
    for wrong in (-1, "x", True):
        with pytest.raises(agci.InputError, match=r"`lam` (is|must be)"):
            agci.set_lambda(checkpoint, wrong)


def test_recipes_from_files_and_mappings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data set is missing: the check says so in both; numbers, paths and lists come as Python has them."""
    recipe = {"model_name_or_path": embedded_model_path(), "template": "qwen2_vl", "dataset": ("one", "two")}
    checked = agci.check_recipe(recipe, dataset_dir=tmp_path, output_dir=tmp_path / "out", lora_rank=4, **QUIET)
    assert not checked.passed and "dataset_info.json" in checked.errors[0]
    file = tmp_path / "r.yaml"
    file.write_text(f"model_name_or_path: {embedded_model_path()}\ntemplate: qwen2_vl\ndataset: one,two\n")
    changes = [f"dataset_dir={tmp_path}", f"output_dir={tmp_path / 'out'}", "lora_rank=4"]
    assert lines_of(["check-recipe", file, *changes], capsys, 2) == f"{checked.text}\n"
    for function, given, said in (
        (agci.train_lora, {"export_dir": "x", "model_name_or_path": "m"}, "merges an adapter"),
        (agci.merge_lora, recipe | {"output_dir": "x"}, "has no export_dir, so it trains an adapter"),
        (agci.check_recipe, recipe, "the recipe: the key output_dir is missing"),
        (agci.check_recipe, 5, "`recipe` must be a YAML file or a mapping of its keys, but is 5"),
        (agci.check_recipe, {1: 2}, "`recipe`: its keys must be texts, but one is 1"),
        (agci.check_recipe, recipe | {"output_dir": "x", "lora_rank": [1]}, "lora_rank must be a whole number"),
    ):
        with pytest.raises(agci.InputError, match=re.escape(said)):
            function(given)


@pytest.mark.slow
def test_an_adapter_is_trained_goes_on_and_is_merged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import training_data as td
    import transformers

    data = td.write_data(tmp_path / "data")
    raw = td.training_recipe("qwen2_5_vl", embedded_model_path(), data, tmp_path / "adapter", max_steps=2)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    trained = agci.train_lora(raw, **QUIET)
    assert "it/s" not in capfd.readouterr().err
    assert transformers.utils.logging.is_progress_bar_enabled() == bars
    assert trained.to_pandas()[["run", "step"]].values.tolist() == [[0, 1], [0, 2]]
    again = agci.train_lora(raw, **QUIET)
    assert "is finished already" in again.log[-1] and again.rows == trained.rows
    merging = {"model_name_or_path": embedded_model_path(), "adapter_name_or_path": trained.folder}
    merged = agci.merge_lora(merging, export_dir=tmp_path / "merged")
    assert merged.written and 0 < merged.changed < merged.weights
    assert not agci.merge_lora(merging, export_dir=tmp_path / "merged").written
    assert agci.load(merged.folder).description


def test_families_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = agci.supported_families()
    assert lines_of(["families"], capsys) == f"{found.text}\n"
    frame = found.to_pandas()
    assert list(frame["model_type"]) == list(agci.SUPPORTED_FAMILIES)
    assert frame.set_index("model_type").loc["llava", ["probe", "fine_tuning", "conversion"]].tolist() == [True] * 3
    assert found._repr_html_().count("<tr>") == len(frame) + 1


# --- scores and results that are there -----------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str, said: str) -> Path:
        asked = {"image_source": "1", "category": "random", "answer": "no"}
        rows = (
            {"question_id": str(n), "question": f"Is there a {n}?", **asked, "prediction": word}
            for n, word in enumerate(said.split())
        )
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write


def test_a_score_is_the_commands(
    answers: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = answers("one.jsonl", "No Yes No Yes"), answers("two.jsonl", "No No No Yes")
    found = agci.score("pope", one, against=[two], resamples=50)
    found.write_json(tmp_path / "a.json")
    found.write_items(tmp_path / "a.jsonl")
    files = ["--json", tmp_path / "b.json", "--items", tmp_path / "b.jsonl"]
    said = lines_of(["score", "pope", "--answers", one, "--against", two, "--resamples", "50", *files], capsys)
    assert said == f"{found.text}\n"
    for end in ("json", "jsonl"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    assert found.to_pandas()["correct"].tolist() == [True, False, True, False]
    assert found.figures["difference"]["gained"] == 1
    assert "<table>" in found._repr_html_()
    for given, message in (
        ({"judge": "codes"}, "pope takes no `judge`"),
        ({"resamples": -1}, "`resamples` must be a whole number of at least 0"),
        ({"questions": 5}, "`questions` must be a file or a list of files, but is 5"),
        ({"against": pd.DataFrame()}, "`against` must be a list of files, but is a DataFrame"),
    ):
        with pytest.raises(agci.InputError, match=message):
            agci.score("pope", one, **given)
    with pytest.raises(agci.InputError, match="`answers` is an empty list"):
        agci.score("pope", [])
