"""`agci compare`: its words, one resumable run, the choice on development items, the report, the ruler's arms."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_vllm
from made_results import result_file
from stub_vllm import AsyncLLM

from transformers_agci import InputError
from transformers_agci.cli import main
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.compare.arms import parse_arm, parse_arms
from transformers_agci.experiments.compare.on_ruler import (
    conditions_of,
    measure_on_ruler,
    ruler_arms,
    ruler_text,
    shown,
)
from transformers_agci.experiments.compare.report import (
    ReportOptions,
    compare_arms,
    compared_text,
    cost_text,
    notes_of,
    overview,
    split_items,
)
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
    text = compared_text(compared, results, {})
    assert text.count("chosen") == 1 and text.count("(its only strength)") == 1
    assert f"on the {compared.split.held_out} held-out items:" in text
    agci, bapa = compared.evidence.comparisons
    assert agci.pair.balanced is not None and agci.pair.balanced.low > 0
    assert agci.pair.evenness.verdict == "more even"
    assert bapa.pair.balanced is not None and bapa.pair.balanced.high < 0
    assert bapa.pair.auc is not None and abs(bapa.pair.auc.estimate) < 1e-9
    assert bapa.pair.criterion is not None and bapa.pair.criterion.low > 0
    assert len(bapa.holm) == len(bapa.tests)


def test_where_nothing_is_to_be_chosen_all_items_report(tmp_path: Path) -> None:
    results = [
        result_file(tmp_path, "stock", 0.0, 2.0),
        result_file(tmp_path, "agci:0.5", 0.0, 0.0),
        result_file(tmp_path, "bapa", -1.0, 2.0),
    ]
    compared = compare_arms(results, ReportOptions())
    assert (compared.split.dev, compared.split.held_out, compared.evidence.items) == (0, 60, 60)
    assert compared.scores == {}
    text = compared_text(compared, results, {})
    assert text.startswith("No method has several strengths: nothing is chosen, and all 60 items report.\n\non all 60")
    assert text.count("chosen") == 1 and "held-out" not in text
    assert overview({"one": compared}).title == "all models on all 60 items; 95 % intervals"
    with pytest.raises(InputError, match=r"^9 items to compare methods on, but at least 10 are needed"):
        split_items({str(number): "" for number in range(9)}, 0.5, choose=False)


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
    assert "on all 24 items:" in said and "held-out" not in said
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
    assert "on all 24 items:" in said and "held-out" not in said
    assert main([*words, "--quiet", "--draws", "50"]) == 0
    assert len(AsyncLLM.started) == 3
    assert main([word for word in words if word not in ("--engine", "vllm")]) == 2
    assert "engine" in capsys.readouterr().err
