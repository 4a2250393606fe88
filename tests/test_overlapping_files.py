"""What a command writes is never what it reads, what stands beside that, or what it writes already."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import coin, result_rows, write

from transformers_agci import build_probe, probe, read_probe, score, similarity, sweep
from transformers_agci.cli import COMMANDS, command_parser, find_command, main
from transformers_agci.commands.files import DERIVED, FOLDERS, WRITTEN
from transformers_agci.errors import InputError
from transformers_agci.storage.manifest import path_of
from transformers_agci.storage.result_file import ResultFile

# A command with its input, in.jsonl, and what would be written over it. {in}: the input, {stem}: without its ending.
OVER_THE_INPUT = [
    "metrics --results_file {in} --json {in}",
    "metrics --results_file other.jsonl {in} --json {in}",
    "metrics --results_file other.jsonl --text_only_file {in} --json {in}",
    "evidence other.jsonl {in} --json {in}",
    "evidence other.jsonl {in} --output_figure {in}",
    "evidence other.jsonl {in} --output_curve {in}",
    "sweep other.jsonl {in} --json {in}",
    "report {in} --output {in}",
    "metrics-similarity --results_file {in} --json {in}",
    "score pope --answers {in} --json {in}",
    "score pope --answers {in} --items {in}",
    "score textvqa --answers other.jsonl --annotations {in} --json {in}",
    "probe --eval_file {in} --img_path . --global_context_lambda 0 --answer_file {in} --overwrite",
    "probe --eval_file other.jsonl --negatives_file {in} --img_path . --global_context_lambda 0 --answer_file {in}",
    "probe --eval_file {stem}.lam0.jsonl --img_path . --global_context_lambda 0 0.5 --answer_file {in}",
    "probe --eval_file {stem}.lam0.jsonl --img_path . --global_context_lambda 0.0 0.50 --answer_file {in}",
    "probe --eval_file {stem}.text_only.jsonl --img_path . --text_only --answer_file {in}",
    "benchmark pope --model none --data {in} --answer_file {in} --overwrite",
    "downstream --model none --eval_file_path_pope {in} --answers_file_pope {in}",
    "similarity --eval_file {in} --img_path . --answer_file {in} --overwrite",
    "occlusion-maps --prob_results_dir {in} --output_path {in}",
    "flow --image {in} --question ? --output_path {in}",
    "flow --eval_file flow/flow.jsonl --img_path . --output_dir flow",
    "compare --data {in} --img_path . --json {in}",
    "compare --data out/compared.json --img_path . --output_dir out",
    "data build-probe --source . --captions set/in.json --output_dir set --name in",
    "data build-similarity --source . --captions set/in.json --output_dir set --name in",
    "data sample-instruct --mix set/in.json --output_dir set --name in",
    "data build-scienceqa --problems {in} --pid_splits other.jsonl --output {in}",
]
# What a command writes that is a file beside its input.
BESIDE_THE_INPUT = [
    "metrics --results_file {in} --json {stem}.manifest.json",
    "metrics --results_file {in} --json {stem}.bad.jsonl",
    "metrics --results_file {in} --json {stem}.lock",
    "evidence other.jsonl {in} --json {stem}.manifest.json",
    "sweep other.jsonl {in} --json {stem}.json",  # its manifest is that of {in}
    "score pope --answers {in} --items {stem}.manifest.json",
    "probe --eval_file {in} --img_path . --global_context_lambda 0 --answer_file {stem}.json",
    "benchmark pope --model none --data {in} --answer_file {stem}.json",
    "similarity --eval_file {in} --img_path . --answer_file {stem}.json",
]
TWICE = [
    "metrics --results_file {in} --json one.png --output_heatmap one.png",
    "metrics --results_file {in} --json one.png --output_heatmap one",
    "evidence {in} other.jsonl --output_figure one.png --output_curve one.png",
    "evidence {in} other.jsonl --output_figure one.png --json one.png",
    "metrics-similarity --results_file {in} --json one.png --output_heatmap one.png",
    "score pope --answers {in} --json one.json --items one.json",
    "flow --image {in} --question ? --output_path one.json",
]
CHECKED_BELOW = {"data build-probe", "data build-similarity", "data sample-instruct"}
WITHOUT_AN_OVERLAP = {  # an input and an output, of which one is a folder with names of its own
    "convert-llava",
    "set-lambda",
    "train-embedded",
    "app",
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(command: str, capsys: pytest.CaptureFixture[str], **names: str) -> str:
    before = files(Path())
    assert main(command.format(**names).split()) == 2, command
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--overwrite" not in said
    assert files(Path()) == before, command
    return said


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with results, each with what stands beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("in.jsonl", "other.jsonl", "in.lam0.jsonl", "in.text_only.jsonl", "in.manifest.json", "in.bad.jsonl"):
        Path(name).write_text(json.dumps({"prediction": "Yes", "of": name}) + "\n")
    for name in ("set/in.json", "out/compared.json", "flow/flow.jsonl"):
        Path(name).parent.mkdir()
        Path(name).write_text("{}")


@pytest.mark.parametrize("command", OVER_THE_INPUT)
def test_an_output_is_not_an_input(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(command, capsys, **{"in": "in.jsonl", "stem": "in"})
    assert "which this command reads" in said
    assert "choose" in said


@pytest.mark.parametrize("command", BESIDE_THE_INPUT)
def test_an_output_is_not_beside_an_input(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "belongs to" in refused(command, capsys, **{"in": "in.jsonl", "stem": "in"})


@pytest.mark.parametrize("command", TWICE)
def test_no_file_is_written_twice(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "would both write" in refused(command, capsys, **{"in": "in.jsonl"})


@pytest.mark.parametrize(
    "command",
    [
        "metrics --results_file other.jsonl --json {to}",
        "evidence other.jsonl --json {to}",
        "metrics-similarity --results_file other.jsonl --json {to}",
        "score pope --answers other.jsonl --json {to}",
        "compare --json {to}",
    ],
)
@pytest.mark.parametrize("to", ["in.jsonl", "in.manifest.json", "in.bad.jsonl"])
def test_figures_do_not_replace_the_rows_of_another_run(
    command: str, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "figures may not replace" in refused(command, capsys, to=to)


@pytest.mark.parametrize("spelled", ["symlink", "hardlink", "./in.jsonl", "set/../in.jsonl", "absolute"])
def test_a_file_is_the_same_however_it_is_spelled(spelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    if spelled == "symlink":
        Path(spelled).symlink_to("in.jsonl")
    elif spelled == "hardlink":
        os.link("in.jsonl", spelled)
    name = str(Path("in.jsonl").absolute()) if spelled == "absolute" else spelled
    assert "which this command reads" in refused(f"metrics --results_file in.jsonl --json {name}", capsys)


def test_the_standard_output_and_other_names_are_none_of_the_input(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("in.jsonl"), result_rows(4, coin(0.7, 1)))
    for name in ("numbers.json", "in.json", "-", "-"):  # which leave the results alone
        assert main(f"metrics --results_file in.jsonl --draws 5 --json {name}".split()) == 0
    assert json.loads(Path("in.json").read_text())["results"]


@pytest.mark.parametrize(("method", "infix"), [("uniform", "uniform"), ("random --method_seed 0 1", "random-1")])
def test_a_control_leaves_the_file_of_the_name_without_it_alone(
    method: str, infix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = f"probe --img_path . --global_context_lambda 0.5 --method {method} --answer_file in.jsonl --eval_file"
    Path(f"in.{infix}.jsonl").write_text("{}\n")
    assert "which this command reads" in refused(f"{asked} in.{infix}.jsonl", capsys)
    assert main([*asked.split(), "in.jsonl"]) == 2  # its rows are answers, which is what is said of them
    assert "which this command reads" not in capsys.readouterr().err


def test_every_command_with_an_input_and_an_output_is_tried() -> None:
    """A new command, or a new option of one, needs a line in the table."""
    tried = {find_command(line.split()) for line in [*OVER_THE_INPUT, *BESIDE_THE_INPUT]}
    for command in COMMANDS:
        options = {action.dest for action in command_parser(command)._actions if names_a_file(action)}
        outputs = (options & set(WRITTEN)) | {name for name in options if name.startswith("answers_file_")}
        if (outputs or command.words in {*DERIVED, *CHECKED_BELOW}) and options - outputs - set(FOLDERS):
            assert command in tried or command.words in WITHOUT_AN_OVERLAP, command.words


def names_a_file(action: argparse.Action) -> bool:
    return getattr(action.type, "__name__", "") in {"path", "json_file"} or action.dest.startswith("output_")


def test_a_sweep_does_not_replace_the_manifest_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(Path(name), result_rows(40, coin(0.7, len(name))))
    with ResultFile(Path("x.jsonl"), [1], {"experiment": "position probe"}):
        pass
    said = refused("sweep a.jsonl b.jsonl --json x.json", capsys)
    assert "x.manifest.json is the manifest of a position probe run" in said
    with pytest.raises(InputError, match="position probe run"):  # and from Python
        sweep(["a.jsonl", "b.jsonl"]).write_json("x.json")
    for _ in range(2):  # its own it does replace
        sweep(["a.jsonl", "b.jsonl"]).write_json("y.json")
    with pytest.raises(InputError, match="manifest of a sweep run"):
        ResultFile(Path("y.jsonl"), [1], {"experiment": "position probe"}, overwrite=True).__enter__()


def test_numbers_do_not_replace_rows_from_python() -> None:
    write(Path("a.jsonl"), result_rows(3, coin(0.7, 1)))
    for found in (read_probe("a.jsonl").statistics(5), read_probe("a.jsonl", "a.jsonl").evidence(None, 5)):
        for name in ("a.jsonl", "in.manifest.json", "in.bad.jsonl"):
            before = Path(name).read_bytes()
            with pytest.raises(InputError, match="figures may not replace"):
                found.write_json(name)
            assert Path(name).read_bytes() == before
        found.write_json("numbers.json")
        found.write_json("numbers.json")


def test_a_score_does_not_replace_its_answers_from_python() -> None:
    asked = {"image_source": "1", "category": "random"}
    rows = [
        {"question_id": text, "question": text, **asked, "answer": "no", "prediction": said}
        for text, said in (("Is there a cat?", "No"), ("Is there a dog?", "Yes"))
    ]
    before = write(Path("answers.jsonl"), rows).read_bytes()
    found = score("pope", "answers.jsonl", resamples=0)
    for act in (found.write_items, found.write_json):
        with pytest.raises(InputError, match=r"`path` would be written over answers\.jsonl.*`answers`"):
            act("set/../answers.jsonl")
    assert Path("answers.jsonl").read_bytes() == before


def test_a_sweep_to_the_standard_output_leaves_nothing_beside_it() -> None:
    beside = Path("/dev/stdout.manifest.json")
    before = beside.stat().st_mtime_ns if beside.exists() else None
    for name in ("a.jsonl", "b.jsonl"):
        write(Path(name), result_rows(40, coin(0.7, len(name))))
    sweep(["a.jsonl", "b.jsonl"]).write_json("/dev/stdout")
    assert (beside.stat().st_mtime_ns if beside.exists() else None) == before


def test_overwrite_leaves_a_data_set_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest of a built set is not that of answers, whatever is read beside it."""
    built = build_probe(kind="shapes", items=1, canvas=90, folder="ds", name="words", progress=False)
    before = files(Path("ds"))
    with pytest.raises(InputError, match="the manifest of a built data set"):
        ResultFile(Path("ds/words.jsonl"), [1], {"experiment": "position probe"}, overwrite=True).__enter__()
    words = f"probe --eval_file {built.rows_file} --img_path {built.img_path} --global_context_lambda 0 --overwrite"
    for name in ("words.jsonl", "words.json", "words_negatives.json", "words.dropped.jsonl"):
        assert "choose" in refused(f"{words} --answer_file ds/{name}", capsys)
    assert files(Path("ds")) == before
    assert main(["data", "check", str(built.rows_file)]) == 0
    assert path_of(built.rows_file).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("call", "name"), [(probe, "answers"), (similarity, "similarity")])
def test_answers_from_python_are_not_written_over_what_is_asked(call: Callable[..., Any], name: str) -> None:
    built = build_probe(kind="shapes", items=1, canvas=90, folder="ds", name=name, progress=False)
    before = files(Path("ds"))
    with pytest.raises(InputError, match=rf"{name}\.manifest\.json beside .* belongs to .*{name}\.json"):
        call(data=built.data, folder="ds", lambdas=0, progress=False, overwrite=True)
    assert files(Path("ds")) == before
