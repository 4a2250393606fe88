"""`agci probe` and the per-model commands: rows in, rows out, lambda, negatives and controls, its processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probe_run
import pytest
from probe_run import ITEMS, probe_rows, read, with_key

from transformers_agci.cli import main
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.experiments.position.results import read_results
from transformers_agci.families import paper_families
from transformers_agci.method.lam import LAMBDA_KEY

data = probe_run.data  # fixture
probe = probe_run.probe  # fixture

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.parametrize("family", paper_families())
def test_rows_out_are_rows_in_with_the_answer(probe: Callable[..., Any], data: Path, family: str) -> None:
    assert probe("--global_context_lambda", "0", "0.5", family=family) == 0
    baseline, agci = read(data / "A.lam0.jsonl"), read(data / "A.lam0.5.jsonl")
    for given, row in zip(probe_rows(), baseline, strict=True):
        assert {name: row[name] for name in given} == given
        assert list(row)[len(given) :] == ["prediction", "qs", "yes_logit", "no_logit", "margin"]
        assert row["qs"] == PROMPT.format(caption=given["caption"])
        assert row["margin"] == pytest.approx(row["yes_logit"] - row["no_logit"], abs=2e-6)
    assert [row["yes_logit"] for row in baseline] != [row["yes_logit"] for row in agci], "lambda must do something"
    for lam, name in ((0.0, "A.lam0"), (0.5, "A.lam0.5")):
        settings = json.loads((data / f"{name}.manifest.json").read_text())["settings"]
        assert settings["lambda"] == lam and settings["prompt"] == PROMPT and len(settings["data_sha256"]) == 64


def test_lambda_zero_is_the_stock_model(probe: Callable[..., Any], data: Path) -> None:
    probe("--global_context_lambda", "0")
    at_zero = read(data / "A.jsonl")
    probe("--global_context_lambda", "0", "--method", "uniform", answer_file=data / "B.jsonl")
    assert read(data / "B.uniform.jsonl") == at_zero


def test_one_lambda_writes_the_file_that_was_named(probe: Callable[..., Any], data: Path) -> None:
    assert probe("--global_context_lambda", "0.5") == 0
    assert len(read(data / "A.jsonl")) == 9 * ITEMS and not list(data.glob("A.lam*"))


def test_negatives_stand_with_their_item(probe: Callable[..., Any], data: Path) -> None:
    assert probe(negatives_file=data / "x_negatives.json") == 0
    assert [(row["image"][:3], row["answer"]) for row in read(data / "A.jsonl")] == [
        (f"{item:03d}", answer) for item in range(ITEMS) for answer in ("Yes", "No") for _ in range(9)
    ]
    result = read_results(data / "A.jsonl")
    assert result.label == "baseline (lambda 0)" and result.yes.rows == result.no.rows == 9 * ITEMS


def test_items_and_limit(probe: Callable[..., Any], data: Path) -> None:
    probe("--items", "1")
    assert len(read(data / "A.jsonl")) == 9
    probe("--limit", "12", answer_file=data / "B.jsonl")
    assert read(data / "B.jsonl")[-1]["image"] == "001_2.jpg" and len(read(data / "B.jsonl")) == 12


@pytest.mark.parametrize("model, answers", [("--model", "--answers_file"), ("--model_path", "--answer_file")])
def test_both_spellings(data: Path, tiny_checkpoint: Callable[[str], Path], model: str, answers: str) -> None:
    words = ["--eval_file", data / "x.json", "--img_path", data / "images", "--limit", 2, "--quiet"]
    assert main(list(map(str, ["probe", model, tiny_checkpoint("llava"), answers, data / "S.jsonl", *words]))) == 0
    assert len(read(data / "S.jsonl")) == 2


def test_dry_run_writes_nothing(probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(data.rglob("*"))
    assert probe("--dry_run", "--global_context_lambda", "0", "0.5", "--text_only") == 0
    out = capsys.readouterr().out
    for words in ("Determine if there is a sub-image", "image tokens", "18 rows", "A.lam0.5.jsonl", "A.text_only"):
        assert words in out, words
    assert sorted(data.rglob("*")) == before
    assert probe("--dry_run", eval_file=None, img_path=None, items=1) == 0, "the atlas's composites are drawn elsewhere"
    assert "18 rows, 1 item from the embedded atlas" in capsys.readouterr().out
    assert sorted(data.rglob("*")) == before


def first_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[0]


def test_first_line_says_which_lambda_and_whence(
    probe: Callable[..., Any], data: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    keyed = with_key(tiny_checkpoint("qwen2_5_vl"), data / "keyed", 0.7)
    capsys.readouterr()
    probe("--global_context_lambda", "0.25", "0", model_path=keyed, answer_file=data / "a.jsonl")
    assert first_line(capsys).startswith("lambda 0.25, 0 (from the command line); Qwen2.5-VL")
    probe(model_path=keyed, answer_file=data / "b.jsonl")
    assert first_line(capsys).startswith(f"lambda 0.7 (from {LAMBDA_KEY} in the model's config.json)")
    probe(answer_file=data / "c.jsonl")
    assert first_line(capsys).startswith("lambda 0 (from the default")
    probe("--global_context_lambda", "0.7", answer_file=data / "d.jsonl")
    assert read(data / "b.jsonl") == read(data / "d.jsonl"), "the key and the flag are the same lambda"


@pytest.mark.slow
def test_yes_rates_without_the_image(probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        probe(
            "--text_only",
            "--blank_image",
            "--global_context_lambda",
            "0",
            "0.5",
            negatives_file=data / "x_negatives.json",
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "says Yes without the image" in out
    for name in ("text only", "blank image, baseline (lambda 0)", "blank image, AGCI (lambda 0.5)"):
        assert name in out
    for name in ("text_only", "blank_image.lam0", "blank_image.lam0.5"):
        rows = read(data / f"A.{name}.jsonl")
        assert [(row["image"], row["answer"]) for row in rows] == [
            (f"{item:03d}_0.jpg", answer) for item in range(ITEMS) for answer in ("Yes", "No")
        ]
    assert json.loads((data / "A.text_only.manifest.json").read_text())["settings"]["picture"] == "text_only"
    # The same answer whatever the image: only the caption differs between these rows.
    assert len({row["margin"] for row in read(data / "A.text_only.jsonl")}) == 2 * ITEMS
    hint = out.strip().splitlines()[-1]
    words = hint.removeprefix("numbers and map: agci ").replace("map.png", str(data / "map.png")).split()
    assert main([*words, "--draws", "20"]) == 0
    assert (data / "map.png").exists() and "text only" in capsys.readouterr().out


def test_three_lambdas_are_told_their_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.api import probe

    results = tuple(tmp_path / f"A.lam{lam}.jsonl" for lam in ("0", "0.25", "0.5"))
    monkeypatch.setattr(probe, "run_probe", lambda *_: probe.ProbeRun(0, (), results))
    assert main(["probe", "--global_context_lambda", "0", "0.25", "0.5"]) == 0
    names = " ".join(map(str, results))
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"numbers and map: agci metrics --results_file {names} --output_heatmap map.png",
        f"curve over lambda: agci evidence {names} --output_curve curve.png",
    ]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("qwen2_5_vl")
    monkeypatch.setattr("transformers_agci.embedded.location.embedded_model_path", lambda: folder)


def test_without_model_and_file_the_embedded_ones_serve(
    embedded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["probe", "--items", "1", "--device", "cpu", "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "lambda 0, 0.5 (from the default of the embedded model)" in said and "the embedded atlas" in said
    for lam in ("0", "0.5"):
        rows = read(f"position_probe.lam{lam}.jsonl")
        assert [row["answer"] for row in rows] == ["Yes"] * 9 + ["No"] * 9
    pictures = {path: path.stat().st_mtime_ns for path in Path("position_probe.probe_set").rglob("*.jpg")}
    assert len(pictures) == 9
    assert main(words) == 0, "the same command goes on"
    assert "36 already done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    assert main(["probe", "--items", "1", "--seed", "1", "--device", "cpu", "--quiet"]) == 2
    assert "data_sha256" in capsys.readouterr().err


def test_embedded_model_is_of_one_family(embedded: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--family", "gemma3n"]) == 2
    assert "--model_path is needed: without it the embedded model answers" in capsys.readouterr().err


def test_interrupted_rows_are_kept_and_the_same_command_goes_on(
    probe: Callable[..., Any], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers_agci.storage.result_file import ResultFile

    probe("--batch_size", "1", answer_file=data / "whole.jsonl")
    original, written = ResultFile.write, []

    def write_once(self: Any, *arguments: Any, **others: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(original(self, *arguments, **others))

    monkeypatch.setattr(ResultFile, "write", write_once)
    capsys.readouterr()
    assert probe("--batch_size", "1") == 130
    assert "interrupted; what was finished is kept" in capsys.readouterr().err
    kept = read(data / "A.jsonl")
    assert 0 < len(kept) < 18
    monkeypatch.undo()
    assert probe("--batch_size", "1") == 0
    assert (data / "A.jsonl").read_bytes() == (data / "whole.jsonl").read_bytes()


TEMPLATE = '''"""The position probe on a {name} checkpoint: `python eval_laion_bias_data.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["probe", "--family", "{name}", *sys.argv[1:]])
'''


def test_every_family_has_its_script_and_they_are_alike() -> None:
    scripts = {path.parent.name: path.read_text() for path in SCRIPTS.glob("*/eval_laion_bias_data.py")}
    assert scripts == {family.name: TEMPLATE.format(name=family.name) for family in paper_families().values()}


@pytest.mark.slow
@pytest.mark.parametrize("family", paper_families())
def test_scripts_run_from_any_folder(data: Path, tiny_checkpoint: Callable[[str], Path], family: str) -> None:
    script = SCRIPTS / paper_families()[family].name / "eval_laion_bias_data.py"
    other = "llava" if family != "llava" else "llava_next"
    elsewhere = data / "elsewhere"
    elsewhere.mkdir()
    for checkpoint, code in ((family, 0), (other, 2)):
        words = [
            "--model_path",
            tiny_checkpoint(checkpoint),
            "--eval_file",
            "../x.json",
            "--img_path",
            "../images",
            "--answers_file",
            f"{checkpoint}.json",
            "--global_context_lambda",
            "0.5",
            "--device",
            "cpu",
        ]
        done = subprocess.run(
            [sys.executable, script, *words], cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, done.stderr
    assert len(read(elsewhere / f"{family}.json")) == 18
    assert f"but this command is for {paper_families()[family].name}" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_in_a_process_of_its_own(data: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    """A real signal after the first finished block; then the same command, and the bytes of an undisturbed run.

    The process is stopped in between, so that it surely has work left when the signal is sent.
    """
    import signal
    import time

    command = [
        sys.executable,
        "-m",
        "transformers_agci.cli",
        "probe",
        "--model_path",
        tiny_checkpoint("llava_next"),
        "--eval_file",
        data / "x.json",
        "--img_path",
        data / "images",
        "--batch_size",
        "1",
        "--device",
        "cpu",
    ]

    def start(name: str) -> Any:
        return subprocess.Popen(
            [*map(str, command), "--answer_file", str(data / name)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def interrupted() -> tuple[int, str]:
        process = start("cut.jsonl")
        deadline = time.monotonic() + 120
        while not ((data / "cut.jsonl").exists() and (data / "cut.jsonl").stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGSTOP)
        assert 0 < len(read(data / "cut.jsonl")) < 18
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)
        error = process.communicate(timeout=120)[1]
        return process.returncode, error

    returned, error = interrupted()
    if (
        returned == 0 and "Exception ignored" in error
    ):  # Python drops an interrupt that lands in a finalizer, and says so
        for path in data.glob("cut*"):
            path.unlink()
        returned, error = interrupted()
    assert returned == 130, error
    assert "what was finished is kept" in error
    assert len(read(data / "cut.jsonl")) == 9
    for name in ("cut.jsonl", "whole.jsonl"):
        assert start(name).wait(timeout=300) == 0
    assert (data / "cut.jsonl").read_bytes() == (data / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_processes_of_torchrun_write_the_same_bytes(data: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    """The probe and a control, one process after the other's work on the same file."""
    script = SCRIPTS / "LLaVA-v1.5" / "eval_laion_bias_data.py"
    words = [
        "--model_path",
        tiny_checkpoint("llava"),
        "--eval_file",
        data / "x.json",
        "--img_path",
        data / "images",
        "--device",
        "cpu",
        "--global_context_lambda",
        "0",
        "0.5",
        "--text_only",
        "--batch_size",
        "1",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for launcher, name in (([sys.executable], "one.jsonl"), (torchrun, "two.jsonl")):
        command = [*launcher, script, *words, "--answer_file", data / name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("numbers and map: agci metrics") == 1
    for ending in ("lam0", "lam0.5", "text_only"):
        assert (data / f"one.{ending}.jsonl").read_bytes() == (data / f"two.{ending}.jsonl").read_bytes()


def test_the_help_says_the_lambdas_of_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "the key in the model's config.json, else 0; without --model_path 0 and 0.5" in said
