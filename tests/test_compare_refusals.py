"""`agci compare` where something is missing: rows, methods, models, engines; named and left out, or one sentence."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_results import result_file
from PIL import Image

from transformers_agci import InputError
from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import CannotServe
from transformers_agci.experiments.benchmarks.asking.run import BenchmarkAnswers
from transformers_agci.experiments.compare.arms import Arm, parse_arms
from transformers_agci.experiments.compare.models import (
    Beside,
    ComparedModels,
    _benchmark,
    _compare_model,
    compare_models,
)
from transformers_agci.experiments.compare.report import ReportOptions
from transformers_agci.experiments.compare.run import ArmResult, Candidate, CompareOptions, ask_arms
from transformers_agci.experiments.position.measures import ResamplingConfig


def answering_but(
    refusing: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: type[InputError] = CannotServe
) -> None:
    """Every arm is answered at once, but for these methods, which a model refuses with a sentence."""

    def ask(options: Any, engine: Any, file: Path, arm: Arm, *_: Any) -> ArmResult:
        for method, sentence in refusing.items():
            if arm.method == method and file.parent.name != "serves-all":
                raise kind(sentence)
        file.parent.mkdir(parents=True, exist_ok=True)
        return result_file(file.parent, arm.word, 0.0, 0.0, 24)

    monkeypatch.setattr("transformers_agci.experiments.compare.run._ask", ask)


def compared_with(
    folder: Path, words: list[str], models: tuple[str, ...] = ("one",), target: Path | None = None
) -> tuple[ComparedModels, str]:
    """`compare_models` on made-up answers; what it found, and what a user reads."""
    engine = SimpleNamespace(name="transformers")

    def opened(name: str) -> Any:
        if name == "gone":
            raise InputError("gone is no folder.")
        return contextlib.nullcontext(engine)

    candidates = [Candidate(name, lambda name=name: opened(name)) for name in models]
    options = CompareOptions(candidates, parse_arms(words), folder, items=24)
    said: list[str] = []
    report = ReportOptions(resampling=ResamplingConfig(50))
    return compare_models(options, report, Beside(), target, said.append), "\n".join(said)


@pytest.mark.slow
def test_a_method_that_cannot_serve_the_model_is_named_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering_but({"cca": "No single grid in Tiny."}, monkeypatch)
    found, said = compared_with(tmp_path, ["stock", "cca", "bapa", "flat"])
    assert found.exit_code == 1
    assert dict(found.models[0].left_out) == {"cca 1": "No single grid in Tiny."}
    assert [arm.arm.label for arm in found.models[0].compared.chosen] == ["stock", "bapa 1", "flat 1"]
    assert said.count("cca 1: left out. No single grid in Tiny.") == 2  # when it happens, and in the report
    assert "cca 1: left out. No single grid" in (tmp_path / "compared.txt").read_text()
    assert json.loads((tmp_path / "compared.json").read_text())["left_out"] == {"cca 1": "No single grid in Tiny."}
    with pytest.raises(InputError, match=r"No method is left beside stock\. No single grid in Tiny"):
        compared_with(tmp_path, ["stock", "cca"])
    answering_but({"stock": "The folder is full."}, monkeypatch)
    with pytest.raises(InputError, match="The folder is full"):
        compared_with(tmp_path, ["stock", "bapa"])


@pytest.mark.slow
@pytest.mark.parametrize("models", [("one",), ("one", "two")])
def test_the_folder_of_the_numbers_is_made(
    models: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering_but({}, monkeypatch)
    target = tmp_path / "no" / "such" / "numbers.json"
    compared_with(tmp_path, ["stock", "bapa"], models, target)
    assert json.loads(target.read_text())["left_out"] == {}
    target.unlink()
    target.write_text('{"prediction": "Yes"}\n')
    with pytest.raises(InputError, match="holds rows, which figures may not replace"):
        compared_with(tmp_path, ["stock", "bapa"], models, target)


@pytest.mark.slow
def test_of_several_models_those_that_cannot_be_asked_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering_but({"cca": "No single grid in Tiny."}, monkeypatch)
    found, said = compared_with(tmp_path, ["stock", "cca"], ("gone", "serves-all", "serves-none"))
    assert found.exit_code == 1
    assert [model.name for model in found.models] == ["serves-all"]
    assert dict(found.left_out) == {
        "gone": "gone is no folder.",
        "serves-none": "No method is left beside stock. No single grid in Tiny.",
    }
    written = json.loads((tmp_path / "compared.json").read_text())
    assert (list(written["models"]), written["left_out"]) == (["serves-all"], dict(found.left_out))
    assert said.count("gone: left out. gone is no folder.") == 2
    with pytest.raises(InputError, match=r"None of the models could be asked\. gone is no folder"):
        compared_with(tmp_path, ["stock", "cca"], ("gone", "gone"))


def probe_rows(folder: Path, answers: tuple[str, ...], items: int = 24) -> tuple[Path, ...]:
    """A file of rows for each answer; the image of item 3 in the last cell is not there."""
    for item in range(items):
        for cell in range(9):
            Image.new("RGB", (30, 30), (9 * item, 20 * cell, 0)).save(folder / f"{item:03}_{cell}.png")
    (folder / "003_8.png").unlink()
    files = []
    for answer in answers:
        rows = [
            {
                "id": 9 * item + cell,
                "image": f"{item:03}_{cell}.png",
                "caption": f"{'no ' * (answer == 'No')}thing {item}",
                "position": POSITIONS[cell],
                "answer": answer,
            }
            for item in range(items)
            for cell in range(9)
        ]
        files.append(folder / f"{answer}.json")
        files[-1].write_text(json.dumps(rows))
    return tuple(files)


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_rows_of_one_answer_are_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    (file,) = probe_rows(tmp_path, (answer,))
    words = ["--data", str(file), "--img_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["compare", "--methods", "stock", "bapa", *words]) == 2
    missing = {"Yes": "is No, and methods are compared by both: give them as --negatives_file."}
    assert (
        missing.get(answer, "is Yes, and methods are compared by both: give them as --data.") in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_that_cannot_be_asked_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Now, when the run goes on, and in the report; the exit code says so, too."""
    yes, no = probe_rows(tmp_path, ("Yes", "No"))
    words = ["compare", "--data", str(yes), "--negatives_file", str(no), "--img_path", str(tmp_path), "--draws", "50"]
    for _ in range(2):
        assert main([*words, "--quiet", "--methods", "stock", "bapa", "--output_dir", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().out
        assert said.count("bapa 1: 2 rows skipped") == 2 and "003_8.png" in said
    assert json.loads((tmp_path / "out" / "compared.json").read_text())["skipped_rows"] == {"stock": 2, "bapa 1": 2}


@pytest.mark.slow
def test_a_method_that_a_real_model_refuses(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """LLaVA-NeXT's images are several grids: cca says so at the first prompt."""
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--model", str(tiny_checkpoint("llava_next")), "--items", "24", "--draws", "50", "--quiet"]
    for _ in range(2):  # again where the others are done already
        assert main([*words, "--methods", "stock", "cca", "bapa"]) == 1
        said = capsys.readouterr()
        assert said.out.count("cca 1: left out. An image of") == 2 and "is no single grid in" in said.out
        assert "Traceback" not in said.err
        assert json.loads((tmp_path / "compared" / "compared.json").read_text())["chosen"] == ["stock", "bapa 1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--img_path", "images"], "img_path belongs to --data"),
        (["--negatives_file", "no.jsonl"], "negatives_file belongs to --data"),
        (["--dev_share", "0"], "dev_share is 0, but must lie between 0 and 1"),
        (["--dev_share", "nan"], "dev_share"),
        (["--benchmark", "pope"], "benchmark and --benchmark_data belong together"),
        (["--benchmark", "papa", "--benchmark_data", "x.jsonl"], "Unknown benchmark 'papa'. Available: crpe"),
        (["--benchmark_prompt", "{question}"], "benchmark_prompt is for a benchmark"),
        (["--benchmark_images", "images"], "benchmark_images is for a benchmark"),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--methods", "stock", "bapa", *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--engine", "vllm"], "--engine vllm cannot apply bapa: a rival needs what happens inside the model"),
        (["--engine", "openai", "--base_url", "http://localhost:1/v1"], "no arm can be chosen there"),
        (["--engine", "jax"], "--engine must be one of transformers, vllm, openai"),
        (["--tensor_parallel_size", "2"], "--tensor_parallel_size is for the engine vllm"),
    ],
)
def test_engines_that_cannot_apply_the_arms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--methods", "stock", "agci:0.5", "bapa", *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_ruler_needs_the_engine_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--methods", "stock", "agci:0.5", "--engine", "vllm", "--ruler", "3"]) == 2
    assert "--engine vllm: --ruler needs what happens inside the model" in capsys.readouterr().err


def test_only_what_a_method_refuses_leaves_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not start and a result file of other settings are errors, whichever arm meets them."""
    engine: Any = SimpleNamespace(name="transformers")
    options = CompareOptions([], parse_arms(["stock", "bapa", "flat"]), tmp_path, items=24)
    data: Any = None
    answering_but({"bapa": "No single grid in Tiny."}, monkeypatch)
    asked = ask_arms(options, engine, tmp_path, data, print)
    assert (len(asked.results), asked.left_out) == (2, {"bapa 1": "No single grid in Tiny."})
    answering_but({"bapa": "bapa.jsonl was made with other settings."}, monkeypatch, InputError)
    with pytest.raises(InputError, match="made with other settings"):
        ask_arms(options, engine, tmp_path, data, print)


def benchmarked(
    folder: Path, ends: dict[str, BenchmarkAnswers | InputError], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The benchmark of a comparison whose arms (by the name of their file) end so; scores lie there from before."""

    def ask(source: Any, file: Path, *_: Any) -> BenchmarkAnswers:
        end = ends[file.stem]
        if isinstance(end, InputError):
            raise end
        file.with_suffix(".score.json").write_text(json.dumps({"accuracy": 0.5}))
        return end._replace(outputs=[file])

    monkeypatch.setattr("transformers_agci.experiments.benchmarks.asking.run.ask_benchmark", ask)
    options = CompareOptions([], parse_arms([name.removeprefix("pope.") for name in ends]), folder)
    compared: Any = SimpleNamespace(
        split=SimpleNamespace(dev=0), chosen=[ArmResult(arm, folder, 0, 0) for arm in options.arms]
    )
    engine: Any = SimpleNamespace(name="transformers")
    return _benchmark(options, engine, Beside(benchmark="pope", benchmark_data=folder), compared, folder)


def test_rows_skipped_in_one_arms_benchmark_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: dict[str, BenchmarkAnswers | InputError] = {
        "pope.stock": BenchmarkAnswers(0, [0.0], [], True, 0, True),
        "pope.bapa": BenchmarkAnswers(1, [0.0], [], True, 3, True),
        "pope.flat": BenchmarkAnswers(1, [0.0], [], True, 3, False),
        "pope.cca": CannotServe("No single grid in Tiny."),
    }
    text, scores, left_out = benchmarked(tmp_path, ends, monkeypatch)
    lacking = "3 rows skipped; the score is that of the others."
    assert scores == {"stock": {"accuracy": 0.5}, "bapa 1": {"partial": lacking, "accuracy": 0.5}}
    assert left_out == {
        "bapa 1 on pope": lacking,
        "flat 1 on pope": "3 rows skipped; there is no score.",
        "cca 1 on pope": "No single grid in Tiny.",
    }
    assert f"bapa 1: {lacking}" in text
    with pytest.raises(InputError, match="other settings"):
        benchmarked(tmp_path, {**ends, "pope.cca": InputError("Made with other settings.")}, monkeypatch)


@pytest.mark.slow
def test_the_probes_report_is_written_before_a_benchmark_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise InputError("rows.jsonl: no row.")

    answering_but({}, monkeypatch)
    monkeypatch.setattr("transformers_agci.experiments.benchmarks.asking.run.ask_benchmark", refuses)
    monkeypatch.setattr("transformers_agci.experiments.compare.models.compared_figure", lambda compared: None)
    monkeypatch.setattr("transformers_agci.experiments.compare.models.write_figure", lambda figure, file: file)
    engine: Any = SimpleNamespace(name="transformers")
    model = Candidate("one", lambda: contextlib.nullcontext(engine))
    options, data = CompareOptions([model], parse_arms(["stock", "bapa"]), tmp_path), cast(Any, None)
    report = ReportOptions(resampling=ResamplingConfig(50))
    with pytest.raises(InputError, match="no row"):
        _compare_model(options, report, Beside(benchmark="pope", benchmark_data=tmp_path), 0, data, None, print)
    assert json.loads((tmp_path / "compared.json").read_text())["chosen"] == ["stock", "bapa 1"]
    assert "on all 24 items:" in (tmp_path / "compared.txt").read_text()
