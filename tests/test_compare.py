"""`agci compare`: its words, one resumable run, the choice on development items, the report, the ruler's arms."""

import contextlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stub_vllm
from stub_vllm import AsyncLLM

from transformers_agci import InputError
from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.compare.arms import Arm, parse_arm, parse_arms
from transformers_agci.experiments.compare.command import Beside, ComparedModels, compare_models
from transformers_agci.experiments.compare.on_ruler import (
    conditions_of,
    measure_on_ruler,
    ruler_arms,
    ruler_text,
    shown,
)
from transformers_agci.experiments.compare.report import ReportOptions, compare_arms, cost_text, notes_of
from transformers_agci.experiments.compare.run import ArmResult, Candidate, CompareOptions
from transformers_agci.experiments.position.measures import ResamplingConfig
from transformers_agci.experiments.ruler.conditions import REPAIR
from transformers_agci.experiments.ruler.run import ItemRun
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.inference.processor import load_processor
from transformers_agci.inference.prompt import answer_token_ids
from transformers_agci.vllm import engine as vllm_engine


def test_words_of_arms() -> None:
    found = parse_arms(["bapa", "agci:0.5", "stock", "pai:0.2,gamma=1", "random-3:0.5", "uac:1"])
    assert [arm.label for arm in found] == [
        "stock",
        "bapa 1",
        "agci 0.5",
        "pai 0.2, gamma 1",
        "random-3 0.5",
        "uac 1 (reconstruction)",
    ]
    assert found[0].engine_method == "agci"
    assert found[0].value == 0
    assert found[3].method_options == {"gamma": 1, "strength": 0.2}
    assert parse_arm("pai").value == 0.2  # the authors'
    assert parse_arm("vcd:0.1234567,seed=1234567").label == "vcd 0.1234567, seed 1234567"  # no digit is lost
    assert len({arm.file_name for arm in found}) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bapa"], "`methods` needs stock"),
        (["stock"], "`methods` names stock alone"),
        (["stock", "bapa", "bapa:1"], "`methods` names 'bapa:1' twice"),
        (["stock", "papa"], "the methods are stock, agci, uniform, random, noise, shuffled, other, bapa"),
        (["stock", "agci"], "agci needs a lambda alone, as in agci:0.5"),
        (["stock", "agci:x"], "in which 'x' is no number"),
        (["stock", "bapa:2"], "The strength of bapa is 0"),
        (["stock", "agci:nan"], "lambda must be a finite number"),
        (["stock", "agci:inf"], "lambda must be a finite number"),
        (["stock", "pai:nan"], "The strength of pai is a finite number"),
        (["stock", "pai:inf"], "The strength of pai is a finite number"),
        (["stock", "bapa:nan"], "The strength of bapa is 0"),
        (["stock", "pai:1,gamma=nan"], "The option gamma of pai"),
        (["stock", "vcd:1,noise_step=inf"], "The option noise_step of vcd"),
        (["stock", "pai:1,tempo=2"], "pai has no option 'tempo'"),
        (["stock", "pai:1,gamma"], "in which 'gamma' is not name=number"),
        (["stock", "pai:1,gamma=1,gamma=2"], "in which 'gamma' is given twice"),
        (["stock", "random:0.5", "random-0:0.5"], "names 'random-0:0.5' twice, once as 'random:0.5'"),
        (["stock", "pai:0.2,gamma=1.1", "pai"], "names 'pai' twice, once as 'pai:0.2,gamma=1.1'"),
    ],
)
def test_bad_words(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_arms(words)
    assert message in str(caught.value)


def result_file(folder: Path, word: str, shift: float, spread: float, items: int = 60) -> ArmResult:
    """An arm whose margins are those of a seed plus `shift`, lower by `spread` in the last cell."""
    generator = np.random.default_rng(0)
    rows = []
    for item in range(items):
        for answer, mean in (("Yes", 1.5), ("No", -1.5)):
            for cell in range(9):
                margin = mean + shift + generator.normal() - spread * (cell == 8)
                position = POSITIONS[cell]
                rows.append(
                    {
                        "id": item,
                        "image": f"{item}_{cell}.jpg",
                        "caption": f"thing {item}",
                        "position": position,
                        "answer": answer,
                        "prediction": "Yes" if margin > 0 else "No",
                        "margin": margin,
                    }
                )
    arm = parse_arm(word)
    file = folder / arm.file_name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ArmResult(arm, file, 10.0, None)


def test_strength_is_chosen_on_some_items_and_reported_on_the_others(tmp_path: Path) -> None:
    results = [
        result_file(tmp_path, "stock", 0.0, 2.0),
        result_file(tmp_path, "agci:0.25", 0.0, 1.0),
        result_file(tmp_path, "agci:0.5", 0.0, 0.0),
        result_file(tmp_path, "bapa", -1.0, 2.0),  # moves the threshold, repairs nothing
    ]
    compared = compare_arms(results, ReportOptions())
    assert [result.arm.label for result in compared.chosen] == ["stock", "agci 0.5", "bapa 1"]
    assert compared.split.dev + compared.split.held_out == 60
    assert compared.evidence.items == compared.split.held_out
    agci, bapa = compared.evidence.comparisons
    assert agci.pair.balanced is not None and agci.pair.balanced.low > 0
    assert agci.pair.evenness.verdict == "more even"
    assert bapa.pair.balanced is not None and bapa.pair.balanced.high < 0
    assert bapa.pair.auc is not None and abs(bapa.pair.auc.estimate) < 1e-9
    assert bapa.pair.criterion is not None and bapa.pair.criterion.low > 0
    assert len(bapa.holm) == len(bapa.tests)


def test_costs_and_notes(tmp_path: Path) -> None:
    results = [
        result_file(tmp_path, word, 0, 0, 1)._replace(ms_per_row=ms) for word, ms in (("stock", 10), ("uac", 25))
    ]
    assert "2.50" in cost_text(results)
    assert notes_of([result.arm for result in results]) == [
        "uac: a reconstruction from the abstract: neither its equations nor its code could be read."
    ]


@pytest.mark.slow
def test_one_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Asked once; the second call answers nothing and reports the same; the manifest knows each arm."""
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--items", "24", "--methods", "stock", "flat", "--quiet", "--draws", "50"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "held-out items" in said
    assert "ms per row" in said
    assert "flat: an ablation of BaPA made here" in said
    first = (tmp_path / "compared" / "compared.json").read_text()
    settings = json.loads((tmp_path / "compared" / "flat.manifest.json").read_text())["settings"]
    assert (settings["method"], settings["strength"]) == ("flat", 1.0)
    assert main(words) == 0
    assert "432 already done" in capsys.readouterr().out
    again = json.loads((tmp_path / "compared" / "compared.json").read_text())
    assert {name: again[name] for name in again if name != "environment"} == {
        name: value for name, value in json.loads(first).items() if name != "environment"
    }


def answering_but(refusing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm is answered at once, but for these methods, which a model refuses with a sentence."""

    def ask(options: Any, engine: Any, file: Path, arm: Arm, *_: Any) -> ArmResult:
        for method, sentence in refusing.items():
            if arm.method == method and file.parent.name != "serves-all":
                raise InputError(sentence)
        file.parent.mkdir(parents=True, exist_ok=True)
        return result_file(file.parent, arm.word, 0.0, 0.0, 24)

    monkeypatch.setattr("transformers_agci.experiments.compare.run._ask", ask)


def compared_with(folder: Path, words: list[str], models: tuple[str, ...] = ("one",)) -> tuple[ComparedModels, str]:
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
    return compare_models(options, report, Beside(), None, said.append), "\n".join(said)


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


def test_what_the_ruler_can_measure() -> None:
    words = ["stock", "agci:0.5", "bapa", "pai:0.2", "vcd:1", "uac:1", "pai:0.5,gamma=1", "other:0.5"]
    served, left_out = ruler_arms(parse_arms(words))
    assert served == ["agci:0.5", "bapa:1", "pai:0.2", "vcd:1", "uac:1"]
    assert left_out == [
        "pai:0.5,gamma=1 is not on the ruler, which takes a strength alone.",
        "other:0.5 is not on the ruler, which encodes its own images only.",
    ]
    conditions = conditions_of(served)
    assert len(conditions) == 3 * 7
    assert {condition.method for condition in conditions} == {None, *served}


@pytest.mark.slow
def test_the_ruler_says_what_an_arm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Margins made so that one arm repairs the bias, one moves the threshold, one costs AUC and one does nothing."""
    rng = np.random.default_rng(0)
    rows, size = np.repeat([0.0, 0.5, 1.0], 3), {0.0: 0.0, 0.5: 1.5, 1.0: 3.0}
    even = rng.normal(size=(200, 1, 1)) + 0.3 * rng.normal(size=(200, 2, 9)) + np.array([[2.0], [-2.0]])
    noise = rng.normal(size=even.shape)

    def margins(run: ItemRun) -> dict[str, np.ndarray]:
        found = {}
        for condition in run.conditions:
            biased = even - size[condition.beta or 0.0] * np.stack([rows, 0 * rows])
            found[condition.name] = {"cca:1": even, "bapa:1": biased + 1.0, "vcd:1": biased + 3 * noise}.get(
                condition.arm, even if condition.arm == REPAIR else biased
            )
        return found

    monkeypatch.setattr(ItemRun, "margins", margins)
    found, left_out = measure_on_ruler(tmp_path, parse_arms(["stock", "cca", "bapa", "vcd:1", "flat"]), 200, 0, 1)
    said = {(name.partition(", ")[2], found[name]["beta"]): shown(found[name]) for name in found}
    assert said["nothing", 1.0] == "" and said["flat:1", 1.0] == said["cca:1", 0.0] == "no change shown"
    assert said["known repair", 1.0] == said["cca:1", 1.0] == "more even, says Yes more often, higher AUC"
    assert said["bapa:1", 1.0] == "says Yes more often"
    assert said["vcd:1", 0.0].endswith("lower AUC")
    text = ruler_text(found, left_out)
    assert "cca: its authors train with it" in text and "flat: an ablation" in text


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


@pytest.mark.slow
def test_agci_and_a_control_compared_under_vllm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """One engine per arm with its lambda and method; the manifests say vllm; a second run starts none."""
    stub_vllm.install(monkeypatch)
    monkeypatch.setattr(vllm_engine, "vllm_version", lambda: "0.0-stub")
    processor = load_processor(embedded_model_path(), SUPPORTED_FAMILIES["qwen2_5_vl"], None, None)
    yes, no = answer_token_ids(processor)

    def script(prompt: dict[str, Any]) -> tuple[list[int], dict[int, float]]:
        margin = zlib.crc32(prompt["prompt"].encode() + prompt["multi_modal_data"]["image"][0].tobytes()) / 2**31 - 1
        return [yes if margin > 0 else no], {yes: margin - 4, no: -4.0}

    monkeypatch.setattr(AsyncLLM, "script", staticmethod(script), raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--items", "24", "--methods", "stock", "agci:0.5", "uniform:0.5", "--engine", "vllm"]
    assert main([*words, "--quiet", "--draws", "50"]) == 0
    said = capsys.readouterr().out
    assert [tuple(arguments.hf_overrides.values()) for arguments in AsyncLLM.started] == [
        (0.0,),
        (0.5,),
        (0.5, "uniform"),
    ]
    settings = json.loads((tmp_path / "compared" / "uniform-0.5.manifest.json").read_text())["settings"]
    assert (settings["engine"], settings["method"], settings["lambda"]) == ("vllm", "uniform", 0.5)
    cost = json.loads((tmp_path / "compared" / "compared.json").read_text())["cost"]["agci 0.5"]
    assert cost["ms_per_row"] > 0 and cost["kib_per_list"] is None
    assert "held-out items" in said
    assert main([*words, "--quiet", "--draws", "50"]) == 0
    assert len(AsyncLLM.started) == 3
    assert main([word for word in words if word not in ("--engine", "vllm")]) == 2
    assert "engine" in capsys.readouterr().err
