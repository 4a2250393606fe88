"""From rows to a score through `agci benchmark`.

A model with recorded answers stands in where the score must be known by hand; tiny
checkpoints where the run itself is looked at."""

import json
from collections.abc import Callable
from pathlib import Path

import benchmark_rows
import benchmark_samples as samples
import pytest
from benchmark_rows import EVERY, crpe, figures, hallusionbench, pope, save_images, textvqa
from benchmark_samples import write_json, write_rows
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci.cli import main

model = benchmark_rows.model  # fixture
recorded = benchmark_rows.recorded  # fixture


def ask(name: str, model: object, data: Path, answers: Path, more: str = "") -> int:
    """The exit code of `agci benchmark`."""
    words = ["benchmark", name, "--model", model, "--data", data, "--answer_file", answers, "--quiet", *more.split()]
    return main(list(map(str, words)))


@pytest.mark.parametrize("name", EVERY)
def test_recorded_answers_give_the_score_computed_by_hand(
    name: str,
    tmp_path: Path,
    model: str,
    recorded: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, answers, wanted = EVERY[name]
    recorded(answers)
    out = tmp_path / "out" / f"{name}.jsonl"
    arguments = [
        "benchmark",
        name,
        "--model",
        model,
        "--data",
        str(make(tmp_path)),
        "--answer_file",
        str(out),
        "--global_context_lambda",
        "0",
        "0.5",
        "--quiet",
    ]
    assert main(arguments) == 0
    for lam in ("0", "0.5"):
        found = figures(tmp_path / "out" / f"{name}.lam{lam}.score.json")
        assert {key: found[key] for key in wanted} == wanted
        assert found["lambda"] == float(lam)
    assert found["difference"]["interval_95"] is None  # equal answers: no resample differs
    printed = capsys.readouterr().out
    assert "95 % interval" in printed
    assert "second minus first" in printed
    rows = [json.loads(line) for line in (tmp_path / "out" / f"{name}.lam0.jsonl").read_text().splitlines()]
    assert all({"prediction", "qs"} <= set(row) for row in rows)


def test_crpe_keys_do_not_shadow_each_other() -> None:
    """The recorded answers above are found by text: "Question 1" must not be found in "Question 10"."""
    answers = EVERY["crpe"][1]
    prompts = {row["question_id"]: row["text"] for row in samples.crpe_questions()}
    assert all(sum(key in prompt for key in answers) == 1 for prompt in prompts.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_a_benchmark(family: str, tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    out = tmp_path / "a.jsonl"
    how = "--protocol official --max_new_tokens 3 --global_context_lambda 0.5 --resamples 50"
    assert ask("hallusionbench", tiny_checkpoint(family), hallusionbench(tmp_path), out, how) == 0
    assert len(out.read_text().splitlines()) == 5  # one of them without an image
    assert figures(tmp_path / "a.score.json")["count"] == 5


def test_vision_runs_once_for_all_questions_on_an_image_and_all_lambdas(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    how = "--max_new_tokens 1 --global_context_lambda 0 0.5 1"
    assert ask("crpe", tiny_checkpoint("llava"), crpe(tmp_path), tmp_path / "a", how) == 0
    assert "72 answers" in (printed := capsys.readouterr().out)
    assert "vision ran on 6 images" in printed


def test_bad_rows_are_named_and_the_rest_is_scored(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded({})
    folder = hallusionbench(tmp_path)
    rows = samples.hallusionbench_questions()
    rows[0]["filename"] = "../outside.png"
    rows[1]["filename"] = "./VD/missing.png"
    write_json(folder / "HallusionBench.json", rows)
    assert ask("hallusionbench", model, folder, tmp_path / "a.jsonl") == 1
    printed = capsys.readouterr()
    assert "HallusionBench.json:1: the path '../outside.png' must be relative and without '..'" in printed.out
    assert "does not exist" in printed.out
    assert "HallusionBench: 2 questions" in printed.out


def test_a_link_that_leaves_the_root(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded({})
    folder = hallusionbench(tmp_path)
    save_images(tmp_path / "elsewhere", ["x.png"])
    inside = folder / "data" / "VD" / "illusion" / "0_0.png"
    inside.unlink()
    inside.symlink_to(tmp_path / "elsewhere" / "x.png")
    assert ask("hallusionbench", model, folder, tmp_path / "a.jsonl", "--strict") == 2
    assert "is a link that leads out of" in capsys.readouterr().err


def test_truncated_parquet(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pope(tmp_path)
    file = next(folder.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["benchmark", "pope", "--model", model, "--data", str(folder)]) == 2
    assert "parquet file cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["pope"], "needs --data"),
        (["pope", "--data", "none"], "there is no such file or folder"),
        (["pope", "--data", ".", "--mode", "cot"], "no mode 'cot'"),
        (["textqa", "--data", "."], "Did you mean: textvqa?"),
        (["mmmu_pro", "--data", ".", "--setting", "ten"], "no setting 'ten'; available: 'standard (10 options)'"),
        (["crpe", "--hub_id", "OpenGVLab/CRPE"], "plain files on the hub"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *arguments, "--model", model]) == 2
    assert wanted in capsys.readouterr().err


def test_dry_run_shows_the_prompt(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.jsonl"
    arguments = ["--model", model, "--data", str(crpe(tmp_path)), "--answer_file", str(out), "--dry_run"]
    assert main(["benchmark", "crpe", *arguments]) == 0
    assert "Question 0." in capsys.readouterr().out
    assert not out.exists()


def test_a_limit_asks_the_first_rows(
    tmp_path: Path,
    model: str,
    recorded: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded(EVERY["textvqa"][1])
    out = tmp_path / "a.jsonl"
    arguments = [
        "--model",
        model,
        "--data",
        str(textvqa(tmp_path)),
        "--answer_file",
        str(out),
        "--limit",
        "2",
        "--quiet",
    ]
    assert main(["benchmark", "textvqa", *arguments]) == 0
    assert figures(tmp_path / "a.score.json")["count"] == 2
    assert "not all questions were asked" in capsys.readouterr().out


def test_llavas_pope_questions_are_scored_with_the_label_files(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None]
) -> None:
    recorded({"a dog": "Yes", "a cat": "No", "a car": "Yes", "a cup": "No"})
    questions = write_rows(tmp_path / "llava_pope_test.jsonl", samples.pope_questions())
    save_images(tmp_path, ["COCO_0.jpg", "COCO_1.jpg"])
    labels = samples.pope_label_files(tmp_path / "coco")
    out = tmp_path / "a.jsonl"
    arguments = [
        "--model",
        model,
        "--data",
        str(questions),
        "--annotations",
        str(labels),
        "--answer_file",
        str(out),
    ]
    assert main(["benchmark", "pope", *arguments, "--quiet"]) == 0
    assert figures(tmp_path / "a.score.json")["mean_f1"] == 1


def test_a_data_set_through_the_datasets_library(tmp_path: Path) -> None:
    """A local folder of parquet files is read as a hub id would be."""
    pytest.importorskip("datasets", exc_type=ImportError)  # some releases do not fit every huggingface_hub
    from transformers_agci.experiments.benchmarks import benchmark
    from transformers_agci.experiments.benchmarks.asking.source import Source, question_set

    made = question_set(Source(benchmark("pope"), None, str(pope(tmp_path))))
    assert len(made) == 12
    assert made.questions[0].images[0].open().size == random_image(1).size
    assert "image" not in made.questions[0].row
