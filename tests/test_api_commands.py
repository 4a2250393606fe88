"""Every command has its function in Python, or a reason why not; they do the same."""

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
from api_run import QUIET, lines_of

import transformers_agci as agci
from transformers_agci.api.conversion import ConvertedCheckpoint
from transformers_agci.cli import COMMANDS
from transformers_agci.embedded import embedded_model_path

ROOT = Path(__file__).resolve().parents[1]
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
