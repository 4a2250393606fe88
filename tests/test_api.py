"""The Python API: what a command does in a few lines; names, runs of the probe, what they show and write."""

import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import api_run
import pandas as pd
import pyarrow as pa
import pytest
import torch
from api_run import QUIET, coloured
from matplotlib.figure import Figure
from PIL import Image

import transformers_agci
from transformers_agci.api.probe import ProbeRun
from transformers_agci.api.rows import tables_html
from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.tracking import benchmark_figures
from transformers_agci.inference.engine import Engine
from transformers_agci.report.heatmap import write_figure
from transformers_agci.report.table import Table

data = api_run.data  # fixture
model = api_run.model  # fixture
run = api_run.run  # fixture

LONG = ("compare", "demo", "ruler", "study", "training")  # their examples ask for seconds
MODULES = [
    pytest.param(name, marks=pytest.mark.slow) if name.rpartition(".")[2] in LONG else name
    for name in sorted(set(transformers_agci._PUBLIC.values()))
]


def test_every_function_of_the_api_checks_its_arguments_and_speaks_of_them() -> None:
    found = [getattr(transformers_agci, name) for name, place in transformers_agci._PUBLIC.items() if ".api." in place]
    assert [each.__name__ for each in found if not hasattr(each, "__wrapped__")] == []


def test_every_public_name_resolves_and_is_documented() -> None:
    for name in transformers_agci.__all__:
        found = getattr(transformers_agci, name)
        assert name.isupper() or inspect.getdoc(found), name
        if inspect.isfunction(found):
            hints = inspect.signature(found)
            assert hints.return_annotation is not inspect.Signature.empty, name
            assert all(each.annotation is not inspect.Parameter.empty for each in hints.parameters.values()), name


def test_importing_the_package_loads_no_torch() -> None:
    script = "import sys, transformers_agci; assert 'probe' in dir(transformers_agci); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_example_that_runs(module: str) -> None:
    holds = importlib.import_module(module)
    examples = [example.source for found in doctest.DocTestFinder().find(holds) for example in found.examples]
    names = [name for name, place in transformers_agci._PUBLIC.items() if place == module]
    assert [name for name in names if not any(re.search(rf"\b{name}\b", source) for source in examples)] == []
    found = doctest.testmod(holds, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert (found.attempted > 0, found.failed) == (True, 0)


def test_a_run_is_rows_and_statistics_and_a_figure(run: ProbeRun) -> None:
    frame = run.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame.shape[0] == 2 * 4 * 18
    assert list(frame["lambda"].unique()) == [0.0, 0.5]
    assert (frame["correct"] == (frame["prediction"] == frame["answer"])).all()
    assert frame["margin"].notna().all()
    statistics = run.statistics(draws=50)
    baseline = frame[(frame["lambda"] == 0) & (frame["answer"] == "Yes")]
    assert statistics.results[0].yes.accuracy.estimate == pytest.approx(baseline["correct"].mean())
    assert statistics.pair is not None and statistics.verdict
    assert list(statistics.unevenness) == ["baseline (lambda 0)", "AGCI (lambda 0.5)"]
    assert all(f"{value:.2f}" in str(statistics) for value in statistics.unevenness.values())
    assert statistics.controls[0].name == "text only"
    assert isinstance(run.figure(draws=50), Figure)
    table = run.to_arrow()
    assert isinstance(table, pa.Table)
    assert (table.num_rows, table.schema.field("margin").type) == (144, pa.float64())
    with pytest.raises(AttributeError):
        statistics.results = []  # frozen


def test_statistics_show_themselves_as_tables(run: ProbeRun) -> None:
    statistics = run.statistics(draws=50)
    page = statistics._repr_html_()
    assert page.count("<table>") == 3
    assert "baseline (lambda 0)" in page and "AGCI (lambda 0.5)" in page
    assert "top_left" in str(statistics)
    assert "against baseline (lambda 0)" in run.evidence(draws=50)._repr_html_()
    assert "<table>" in run._repr_html_()


def test_what_stands_in_tables_is_text() -> None:
    hostile = "<script>alert(1)</script>"
    page = tables_html([Table(hostile, [hostile, "n"], [[hostile, hostile]])], [hostile])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5


@pytest.mark.slow
def test_the_command_and_the_api_write_the_same_bytes_and_go_on_in_each_others_files(
    model: Engine, tmp_path: Path
) -> None:
    rows = tmp_path / "set"
    words = ["--items", "2", "--answer_file", str(rows / "answers.jsonl"), "--global_context_lambda", "0", "0.5"]
    assert main(["probe", *words, "--quiet"]) == 0
    data = transformers_agci.probe_data(
        rows / "answers.probe_set" / "embedded_probe.json",
        rows / "answers.probe_set" / "images",
        negatives=rows / "answers.probe_set" / "embedded_probe_negatives.json",
    )
    before = transformers_agci.probe(model, data, [0, 0.5], folder=rows, **QUIET)
    assert before.log[2].endswith("72 already done; vision ran on 0 images, 0 forward calls.")
    run = transformers_agci.probe(model, data, [0, 0.5], folder=tmp_path / "other", **QUIET)
    assert [path.name for path in run.files] == ["answers.lam0.jsonl", "answers.lam0.5.jsonl"]
    for path in run.files:
        assert path.read_bytes() == (rows / path.name).read_bytes()
    with pytest.raises(InputError, match="planted_bias is 'not set' there and 1"):
        transformers_agci.probe(model, data, [0, 0.5], folder=rows, planted_bias=1.0, **QUIET)


def test_without_a_folder_no_file_is_left(
    model: Engine, data: ProbeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = transformers_agci.probe(model, transformers_agci.probe_data(items=2, limit=18), [0.5], **QUIET)
    assert len(run.to_pandas()) == 18
    del run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_methods_and_joined_runs(model: Engine, data: ProbeData, run: ProbeRun) -> None:
    others = transformers_agci.probe(model, data, [0.5], method=["uniform", "random"], **QUIET)
    assert list(others.to_pandas()["method"].unique()) == ["uniform", "random"]
    joined = run + others
    assert len(joined) == 4
    assert len(joined.evidence(draws=50).comparisons) == 3
    assert [result.label for result in joined[1:3].results] == ["AGCI (lambda 0.5)", "uniform (lambda 0.5)"]
    assert sum(bool(axes.get_title()) for axes in joined.figure(draws=50).axes) == 2 * 4  # Yes and No rows of each


def test_rows_that_cannot_be_asked_are_told(model: Engine, tmp_path: Path) -> None:
    data = transformers_agci.probe_data(items=2)
    (data.img_path / "000000001_4.jpg").write_bytes(b"no image")
    run = transformers_agci.probe(model, data, [0], **QUIET)
    assert run.exit_code == 1
    assert len(run.to_pandas()) == 34
    assert any("2 rows were skipped" in line for line in run.log)
    with pytest.raises(InputError, match="000000001_4"):
        transformers_agci.probe(model, data, [0], strict=True, **QUIET)


@pytest.mark.slow
def test_similarity_occlusion_and_flow(model: Engine, tmp_path: Path) -> None:
    similar = transformers_agci.similarity(model, lambdas=[0, 0.5], items=2, folder=tmp_path / "s", **QUIET)
    assert list(similar.to_pandas()["lambda"].value_counts()) == [18, 18]
    assert similar.statistics(0.5, draws=50).items == 2
    assert similar._repr_html_().count("<table>") == 2
    assert isinstance(similar.figure(), Figure)

    data = transformers_agci.probe_data(items=1, limit=2)
    hidden = transformers_agci.occlusion(model, data, [0, 0.5], mask_size=84, folder=tmp_path / "o", **QUIET)
    assert hidden.to_pandas()["masked_copies"].gt(0).all()
    assert [found.values.shape for found in hidden.maps(0.5)] == [(3, 3)] * 2
    assert hidden.statistics().overall.n == 2
    assert isinstance(hidden.figure(), Figure)
    with pytest.raises(InputError, match=r"This run is at lambda 0, 0\.5, but 0\.25 is asked for"):
        hidden.maps(0.25)
    again = transformers_agci.occlusion(model, data, [0, 0.5], mask_size=84, folder=tmp_path / "o", **QUIET)
    assert sum("2 already done" in line for line in again.log) == 2

    flowing = transformers_agci.flow(model, data, folder=tmp_path / "f", **QUIET)
    assert flowing.to_pandas()["text_on_image"].between(0, 1).all()
    assert "lambda 0.5, all" in flowing._repr_html_()
    assert isinstance(flowing.figure(0.5, "answer"), Figure)


@pytest.mark.slow
def test_flow_of_one_image_and_its_command(model: Engine, tmp_path: Path) -> None:
    data = transformers_agci.probe_data(items=1, limit=1)
    image, asked = str(data.img_path / "000000000_0.jpg"), "What is there?"
    one = transformers_agci.flow_of(image, asked, model, [0, 0.5])
    assert [found.lam for found in one] == [0, 0.5]
    assert one._repr_html_().count("<tr>") == 3
    assert one.write(tmp_path / "a.png") == [tmp_path / name for name in ("a.png", "a_answer.png", "a.json")]
    assert main(["flow", "--image", image, "--question", asked, "--output_path", str(tmp_path / "b.png")]) == 0
    for end in (".png", "_answer.png", ".json"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes(), end
    in_memory = transformers_agci.flow_of(Image.open(image), asked, model, 0)
    assert torch.equal(in_memory[0].answer, one[0].answer)
    with pytest.raises(InputError, match="`image` must be a file, a PIL image or encoded bytes, but is a int"):
        transformers_agci.flow_of(7, asked, model)
    with pytest.raises(InputError, match="`source` must be one of text, answer"):
        one.figure("image")


def shown_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_metrics_and_evidence_say_and_write_what_the_api_gives(
    run: ProbeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ["--draws", "50", "--labels", "a", "b", "--text_only_file", *run.control_files["text_only"], "--title", "T"]
    end += ["--json", tmp_path / "c.json"]
    read = transformers_agci.read_probe(*run.files, labels=["a", "b"], text_only_file=run.control_files["text_only"])
    metrics = ["metrics", "--vmin", "10", "--output_heatmap", tmp_path / "c.png", "--results_file", *run.files, *end]
    statistics = read.statistics(draws=50)
    assert shown_by(metrics, capsys) == f"{statistics.text}\n\nmap: {tmp_path / 'c.png'}\n"
    statistics.write_json(tmp_path / "a.json")
    write_figure(read.figure("T", draws=50, vmin=10), tmp_path / "a.png")
    assert [
        (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"c{end}").read_bytes() for end in (".json", ".png")
    ] == [
        True,
        True,
    ]

    drawn = ["--margin", "2", "--output_figure", tmp_path / "c.png", "--output_curve", tmp_path / "d.png"]
    evidence = read.evidence(margin=0.02, draws=50)
    said = shown_by(["evidence", *run.files, *drawn, *end], capsys)
    assert said == f"{evidence.text}\n\nfigure: {tmp_path / 'c.png'}\n\ncurve over lambda: {tmp_path / 'd.png'}\n"
    evidence.write_json(tmp_path / "a.json")
    write_figure(evidence.figure("T"), tmp_path / "a.png")
    write_figure(evidence.curve("T"), tmp_path / "b.png")
    for ours, theirs in (("a.json", "c.json"), ("a.png", "c.png"), ("b.png", "d.png")):
        assert (tmp_path / ours).read_bytes() == (tmp_path / theirs).read_bytes(), ours


def test_results_with_negatives_and_names_of_their_own_are_joined_and_picked(run: ProbeRun, tmp_path: Path) -> None:
    files: dict[str, list[Path]] = {"Yes": [], "No": []}
    for source in run.files:
        for answer, paths in files.items():
            paths.append(tmp_path / f"{source.stem}.{answer}.jsonl")
            lines = source.read_text().splitlines(keepends=True)
            paths[-1].write_text("".join(line for line in lines if json.loads(line)["answer"] == answer))
    one, two = (
        transformers_agci.read_probe(yes, negatives_file=no, labels=name)
        for yes, no, name in zip(files["Yes"], files["No"], "ab", strict=True)
    )
    joined = one + two
    assert [result.label for result in joined.results] == ["a", "b"]
    assert len(joined.rows) == len(run.rows) == 144
    assert [result.label for result in joined[-1].results] == ["b"]
    whole, apart = run.statistics(draws=10), joined.statistics(draws=10)
    assert [report.balanced for report in apart.results] == [report.balanced for report in whole.results]
    assert len((run + two).results) == 3


def test_a_benchmark_is_asked_and_scored(model: Engine, tmp_path: Path) -> None:
    image = tmp_path / "COCO_val2014_000000000001.jpg"
    coloured(3).save(image)
    questions = [
        {"question_id": str(n), "image": image.name, "image_source": "1", "category": "random", "answer": answer}
        | {"question": f"Is there a {word} in the image?"}
        for n, (word, answer) in enumerate([("cat", "yes"), ("dog", "no")], 1)
    ]
    (tmp_path / "pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    run = transformers_agci.benchmark("pope", model, tmp_path / "pope.jsonl", [0, 0.5], resamples=50, **QUIET)
    assert list(run.to_pandas()["lambda"]) == [0.0, 0.0, 0.5, 0.5]
    assert [score.lam for score in run.scores] == [0.0, 0.5]
    assert "difference" in run.scores[1].figures
    assert '<th scope="row">categories/random/accuracy</th>' in run._repr_html_()
    given = benchmark_figures(run.files[1])
    assert given["categories/random/accuracy"] == run.scores[1].figures["categories"]["random"]["accuracy"]
    with pytest.raises(InputError, match=r"Unknown benchmark 'popes'\. Did you mean: pope"):
        transformers_agci.benchmark("popes", model)


def test_what_a_notebook_shows_of_models_rows_and_runs_is_short(model: Engine, data: ProbeData, run: ProbeRun) -> None:
    assert repr(model) == "<Qwen2.5-VL, model embedded>"
    assert repr(data) == "<72 rows, 4 items from the embedded atlas>"
    assert repr(run) == "<probe: answers.lam0.jsonl, answers.lam0.5.jsonl>"


def test_runs_are_summed(run: ProbeRun) -> None:
    assert sum([run[:1], run[1:]]).files == run.files == (run[:1] + run[1:]).files


def test_an_occlusion_that_made_no_map_says_why(model: Engine) -> None:
    found = transformers_agci.occlusion(model, transformers_agci.probe_data(items=1, limit=1), mask_size=1000, **QUIET)
    assert found.exit_code == 1
    for ask in (found.maps, found.statistics, found.figure):
        with pytest.raises(InputError, match=r"^This run made no map, .*smaller than the mask of 1000 pixels"):
            ask()
