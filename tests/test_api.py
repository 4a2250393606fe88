"""The Python API: what a command does in a few lines, on models from disk, from memory and behind a server."""

import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from stub_server import Says, completion, stub_server

import transformers_agci
from transformers_agci.api.images import encoded
from transformers_agci.api.models import as_model
from transformers_agci.api.probe import ProbeRun
from transformers_agci.api.rows import tables_html, to_arrow
from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.tracking import benchmark_figures
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.live import fingerprint
from transformers_agci.method.rivals.handle import attach_from_position_key
from transformers_agci.method.self_check import evaluating
from transformers_agci.report.heatmap import write_figure
from transformers_agci.report.table import Table

LONG = ("compare", "demo", "ruler", "study", "training")  # their examples ask for seconds
MODULES = [
    pytest.param(name, marks=pytest.mark.slow) if name.rpartition(".")[2] in LONG else name
    for name in sorted(set(transformers_agci._PUBLIC.values()))
]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model() -> Engine:
    return transformers_agci.load()


@pytest.fixture(scope="module")
def data() -> ProbeData:
    return transformers_agci.probe_data(items=4)


@pytest.fixture(scope="module")
def run(model: Engine, data: ProbeData) -> ProbeRun:
    return transformers_agci.probe(model, data, [0, 0.5], controls=["text_only"], **QUIET)


def live(model: Engine) -> tuple[Any, Any]:
    """The embedded model's module and processor, as a user holds them."""
    return model.loaded.model, model.loaded.processor  # type: ignore[attr-defined]


# --- the names ---


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


# --- the probe ---


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


# --- models ---


def test_a_live_model_answers_like_the_one_from_disk_and_is_left_as_it_was(
    model: Engine, data: ProbeData, run: ProbeRun
) -> None:
    module, processor = live(model)
    side, template = processor.tokenizer.padding_side, processor.chat_template
    module.train()
    module.model.visual.eval()
    processor.tokenizer.padding_side = "right"
    try:
        wrapped = transformers_agci.wrap(module, processor)
        assert "first_token" in wrapped.notes["kernels"]  # what answers; nothing is put on its layers
        assert "norms" not in wrapped.notes["kernels"]
        found = transformers_agci.probe(wrapped, data, [0, 0.5], **QUIET)
        assert module.training and module.model.language_model.training and not module.model.visual.training
        assert processor.tokenizer.padding_side == "right" and processor.chat_template == template
    finally:
        module.eval()
        processor.tokenizer.padding_side = side
    assert (found.to_pandas()["prediction"] == run.to_pandas()["prediction"]).all()
    assert (found.to_pandas()["margin"] - run.to_pandas()["margin"]).abs().max() < 1e-4


def test_an_attached_model_is_probed_at_its_lambda_and_keeps_it(model: Engine, data: ProbeData, run: ProbeRun) -> None:
    module, processor = live(model)
    handle = transformers_agci.attach(module, 0.5)
    try:
        found = transformers_agci.probe(transformers_agci.wrap(module, processor), data, **QUIET)
        assert (handle.lam, handle.method) == (0.5, "agci")
    finally:
        handle.detach()
    assert list(found.to_pandas()["lambda"].unique()) == [0.5]
    at_half = run.to_pandas()[lambda frame: frame["lambda"] == 0.5].reset_index()
    assert (found.to_pandas()["margin"] - at_half["margin"]).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_a_model_with_lora_is_probed_and_another_state_of_it_does_not_go_on(data: ProbeData, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    module, processor = live(transformers_agci.load())
    torch.manual_seed(0)
    tuned = get_peft_model(module, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    first = transformers_agci.probe(transformers_agci.wrap(tuned, processor), data, [0.5], folder=tmp_path, **QUIET)
    assert len(first.to_pandas()) == 72
    with tuned.disable_adapter():
        stock = transformers_agci.probe(transformers_agci.wrap(tuned, processor), data, [0.5], **QUIET)
    assert (first.to_pandas()["margin"] - stock.to_pandas()["margin"]).abs().max() > 1e-3
    with torch.no_grad():
        next(parameter for name, parameter in tuned.named_parameters() if "lora_B" in name).add_(1.0)
    with pytest.raises(InputError, match="live_weights_sha256"):
        transformers_agci.probe(transformers_agci.wrap(tuned, processor), data, [0.5], folder=tmp_path, **QUIET)


def test_a_fingerprint_sees_a_changed_value_and_eval_mode_ends_with_an_error(model: Engine) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout())
    before = fingerprint(layer)
    layer[0].weight.data[0, 0] += 1
    assert fingerprint(layer) != before
    layer[1].eval()
    with pytest.raises(KeyError), evaluating(layer):
        assert not layer.training
        raise KeyError
    assert (layer.training, layer[0].training, layer[1].training) == (True, True, False)


def test_mistakes_about_models_are_sentences(model: Engine) -> None:
    with pytest.raises(InputError, match=r"has no option `dtyp`\. Did you mean `dtype`"):
        transformers_agci.load(dtyp="float32")
    for given, said in (
        ({"max_pixels": "many"}, "`max_pixels` must be a whole number or None, but is 'many'."),
        ({"load_in_4bit": 1}, "`load_in_4bit` must be True or False, but is 1."),
        ({"dtype": "float8"}, "`dtype` must be one of auto, float32, bfloat16, float16, but is 'float8'."),
        ({"dtype": torch.int8}, "`dtype` must be one of auto, float32, bfloat16, float16, but is 'int8'."),
        ({"engine": 5}, "`engine` must be a text, but is 5."),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            transformers_agci.load(**given)
    with pytest.raises(InputError, match="a model of transformers that is in memory, but was given 'x'"):
        transformers_agci.attach("x", lam=0.5)
    with pytest.raises(InputError, match="`base_url` is for the engine openai"):
        transformers_agci.load(base_url="http://localhost/v1")
    with pytest.raises(InputError, match="The processor must be one for text and images"):
        transformers_agci.wrap(live(model)[0], live(model)[1].tokenizer)
    with pytest.raises(InputError, match="There is no model folder"):
        as_model("./nowhere")


def test_a_served_model_is_probed_and_does_not_show_its_inside(data: ProbeData) -> None:
    with stub_server(lambda number, body: Says(body=completion("No", -3.0, -0.1))) as server:
        served = transformers_agci.load("stub", engine="openai", base_url=server.url)
        frame = transformers_agci.probe(served, data, **QUIET).to_pandas()
        assert set(frame["margin"].round(6)) == {-2.9}
        assert set(frame["lambda"]) == {"as served"}
        with pytest.raises(InputError, match="`similarity` needs what happens inside the model"):
            transformers_agci.similarity(served, data, **QUIET)


# --- data ---


def coloured(number: int) -> Image.Image:
    """A photograph's size, noise that is another one for each number."""
    generator = torch.Generator().manual_seed(number)
    small = torch.randint(0, 256, (5, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((240, 200))


@pytest.mark.slow
def test_images_of_ones_own_become_a_probe_set(model: Engine, tmp_path: Path) -> None:
    captions = [f"the card with {number} on it" for number in range(10)]
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.png")
        coloured(number).save(files[-1])
    given = [*files[:5], *(coloured(number) for number in range(5, 10))]
    data = transformers_agci.composites(given, captions, tmp_path / "set", items=3, canvas=252)
    assert data.rows == 3 * 18
    first = next(iter(data.items.values()))
    assert (first[0].caption, Image.open(data.img_path / first[0].image).size) == (captions[0], (252, 252))
    again = transformers_agci.composites(given, captions, tmp_path / "set", items=3, canvas=252)
    assert again.settings == data.settings
    assert len(transformers_agci.probe(model, data, [0], **QUIET).to_pandas()) == 54


@pytest.mark.parametrize(
    ("images", "captions", "said"),
    [
        ([b"", b""], None, "a caption for each of the 2 images, but there are none"),
        ([b""], ["a", "b"], "a caption for each of the 1 images, but there are 2"),
        (["/nowhere.png"], ["a"], "Image 0: /nowhere.png cannot be read"),
        ([7], ["a"], "Image 0 must be a file, a PIL image or encoded bytes, but is a int"),
        ([coloured(0)], ["a"], "needs at least 10 good pairs"),
    ],
)
def test_images_that_are_refused(images: list[Any], captions: list[str] | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        transformers_agci.composites(images, captions)


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr"])
def test_images_of_any_mode_of_pil_are_encoded(mode: str) -> None:
    assert encoded(Image.new(mode, (4, 4)), "It").startswith(b"\x89PNG")


def test_rows_need_their_images() -> None:
    with pytest.raises(InputError, match="`images` is needed with `rows`"):
        transformers_agci.probe_data("rows.json")
    with pytest.raises(InputError, match="belong to `rows`"):
        transformers_agci.probe_data(images="x")
    with pytest.raises(InputError, match="`kind` must be one of probe, similarity"):
        transformers_agci.published_data("probes")


# --- the other experiments ---


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


def test_a_column_of_several_kinds_is_json_in_arrow() -> None:
    rows = [{"a": 1, "b": {"x": 1}, "c": "é"}, {"a": 2.5, "b": [1], "d": True}]
    table = to_arrow(rows)
    assert table.to_pylist() == [
        {"a": 1.0, "b": '{"x": 1}', "c": "é", "d": None},
        {"a": 2.5, "b": "[1]", "c": None, "d": True},
    ]


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


# --- a model in memory that changes between runs ---


def fresh() -> tuple[Any, Any]:
    """The embedded model of its own, that a test may change."""
    return live(transformers_agci.load())


def test_a_rival_that_is_attached_is_not_recorded_as_agci() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    handle = transformers_agci.attach(module, method="bapa")
    with pytest.raises(InputError, match="would be recorded as those of agci: run with `method` bapa"):
        transformers_agci.probe(wrapped, small, **QUIET)
    assert transformers_agci.probe(wrapped, small, method="bapa", **QUIET).rows[0]["method"] == "bapa"
    handle.strength = 0
    assert transformers_agci.probe(wrapped, small, **QUIET).rows[0]["method"] == "agci"


def test_position_balance_in_the_config_leaves_bapa_to_be_asked_for() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    attach_from_position_key(module)
    assert transformers_agci.probe(wrapped, small, method="bapa", **QUIET).rows[0]["method"] == "bapa"
    with pytest.raises(InputError, match="run with `method` bapa"):
        transformers_agci.probe(wrapped, small, **QUIET)


@pytest.mark.slow
def test_two_threads_with_one_model_do_not_mix_their_lambdas() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2), transformers_agci.wrap(module, processor)
    found: dict[float, list[float]] = {}

    def ask(lam: float) -> None:
        found[lam] = [row["margin"] for row in transformers_agci.probe(wrapped, small, [lam], **QUIET).rows]

    for lam in (0.0, 2.0):
        ask(lam)
    alone = dict(found)
    found.clear()
    threads = [threading.Thread(target=ask, args=(lam,)) for lam in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_weights_that_changed_since_wrap_are_another_model(tmp_path: Path) -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    transformers_agci.probe(wrapped, small, [0], folder=tmp_path, **QUIET)
    with torch.no_grad():
        module.lm_head.weight.mul_(1.5)
    with pytest.raises(InputError, match="live_weights_sha256"):
        transformers_agci.probe(wrapped, small, [0], folder=tmp_path, **QUIET)


def test_a_run_without_lambdas_takes_the_lambda_that_the_model_has_now() -> None:
    module, processor = fresh()
    small, wrapped = transformers_agci.probe_data(items=2, limit=4), transformers_agci.wrap(module, processor)
    assert {row["lambda"] for row in transformers_agci.probe(wrapped, small, **QUIET).rows} == {0.0}
    transformers_agci.attach(module, lam=0.5)
    assert {row["lambda"] for row in transformers_agci.probe(wrapped, small, **QUIET).rows} == {0.5}


# --- arguments that cannot be meant ---


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, but is 0."),
        ({"workers": -1}, "`workers` must be a whole number of at least 0, but is -1."),
        ({"lambdas": "0.5"}, "`lambdas` is a number or a list of numbers, such as [0, 0.5], but is '0.5'."),
        ({"lambdas": [float("nan")]}, "lambda must be a finite number >= 0"),
        ({"lambdas": -1}, "lambda must be a finite number >= 0"),
        ({"lambdas": [0, 0]}, "`lambdas` names a lambda twice"),
        ({"controls": ["x"]}, "`controls` must be of text_only and blank_image, but has 'x'."),
        ({"controls": 3}, "`controls` must be a list of names of controls, but is 3."),
        ({"method": []}, "`method` is an empty list; name at least one method."),
        ({"method": ["agci", 3]}, "`method` must be a name or a list of names, but has 3."),
        ({"method": "nothing"}, "nothing"),
        ({"method": ["agci", "agci"]}, "Each of `method` is run once, but the list is agci, agci."),
        ({"method": "pai", "method_options": {"strength": float("nan")}}, "strength"),
        ({"method_options": {"strength": 0.9}}, "agci has no option 'strength'; it has: none"),
        ({"method": "uniform", "method_options": {"seed": 3}}, "uniform has no option 'seed'; it has: none"),
        ({"method": "random", "method_options": {"foo": 1}}, "random has no option 'foo'; it has: seed."),
        ({"method": "random", "method_options": {"seed": "x"}}, "`seed` must be a whole number of at least 0"),
        ({"method": "random-1", "method_options": {"seed": 3}}, "the seed is given twice"),
        ({"method": "bapa", "method_options": 5}, "`method_options` must be options by name"),
        ({"method_options": 5}, "`method_options` must be options by name"),
        ({"method": "bapa", "lambdas": 0.5}, "`lambdas` belongs to agci and its controls"),
    ],
)
def test_arguments_of_a_probe_that_cannot_be_meant(model: Engine, given: dict, said: str) -> None:
    with pytest.raises(InputError) as refused:
        transformers_agci.probe(model, transformers_agci.probe_data(items=1, limit=2), **given, **QUIET)
    assert said in str(refused.value)


def test_the_seed_of_a_control_is_an_option_as_in_the_command(model: Engine) -> None:
    small = transformers_agci.probe_data(items=1, limit=4)
    by_option, by_name, other = (
        [row["margin"] for row in transformers_agci.probe(model, small, 0.5, **given, **QUIET).rows]
        for given in (
            {"method": "random", "method_options": {"seed": 3}},
            {"method": "random-3"},
            {"method": "random"},
        )
    )
    assert by_option == by_name != other


def test_one_lambda_and_one_control_need_no_list(model: Engine) -> None:
    small = transformers_agci.probe_data(items=2, limit=2)
    found = transformers_agci.probe(model, small, 0.5, controls="text_only", **QUIET)
    assert {row["lambda"] for row in found.rows} == {0.5}
    assert list(found.control_files) == ["text_only"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: transformers_agci.similarity(m, lambdas=[], **QUIET), "`lambdas` must name at least one lambda"),
        (lambda m: transformers_agci.similarity(m, batch_size=0, **QUIET), "`batch_size`"),
        (lambda m: transformers_agci.occlusion(m, lambdas=[0, 0], **QUIET), "`lambdas` names a lambda twice: 0, 0."),
        (lambda m: transformers_agci.occlusion(m, stride=0, **QUIET), "`stride`"),
        (lambda m: transformers_agci.flow(m, items=0, **QUIET), "`items`"),
        (lambda m: transformers_agci.flow(m, max_new_tokens=1.5, **QUIET), "`max_new_tokens`"),
        (lambda m: transformers_agci.benchmark("pope", m, resamples=-1, **QUIET), "`resamples`"),
        (lambda m: transformers_agci.benchmark("pope", m, method_options={"foo": 3}, **QUIET), "has no option 'foo'"),
        (lambda m: transformers_agci.probe_data(items=0), "`items`"),
        (lambda m: transformers_agci.probe(m, planted_bias="x"), "`planted_bias` must be a number, but is 'x'."),
        (lambda m: transformers_agci.probe(m, folder=5), "`folder` must be a text or a path or None, but is 5."),
        (lambda m: transformers_agci.flow(m, layers=[0]), "`layers` must be a text, but is [0]."),
        (lambda m: transformers_agci.flow_of(coloured(1), 5, m), "`question` must be a text, but is 5."),
        (lambda m: transformers_agci.occlusion(m, colour=(1, 2, 3)), "`colour` must be a text, but is (1, 2, 3)."),
        (lambda m: transformers_agci.benchmark("pope", m, prompt=5), "`prompt` must be a text or None, but is 5."),
        (lambda m: transformers_agci.published_data(folder=3), "`folder` must be a text or a path or None, but is 3."),
        (lambda m: transformers_agci.compare(dev_share="x"), "`dev_share` must be a number, but is 'x'."),
        (lambda m: transformers_agci.composites(5), "`images` must be a list of images"),
        (lambda m: transformers_agci.composites(["a"], ["b"], cols="2"), "`cols` must be a whole number, but is '2'."),
        (lambda m: transformers_agci.probe_data(seed="x"), "`seed` must be a whole number, but is 'x'."),
        (
            lambda m: transformers_agci.composites(["a", "b"], "ab"),
            "`captions` must be a list of texts",
        ),
        (lambda m: transformers_agci.sweep([], nested="no"), "`nested` must be True or False, but is 'no'"),
        (lambda m: transformers_agci.probe_data(limit=True), "`limit`"),
        (lambda m: transformers_agci.compare(m, methods=3), "`methods` must be a list of names"),
        (lambda m: transformers_agci.compare(m, methods=["stock", "stock"]), "Each of `methods` is run once"),
        (lambda m: transformers_agci.probe_data("x.json", "/nowhere"), "`images`: there is no folder /nowhere"),
        (lambda m: transformers_agci.inject_global_context([[1.0, 2.0]], 0.5), "tokens must be a tensor [N, D]"),
        (
            lambda m: transformers_agci.flow_of(Image.new("RGB", (3000, 4)), "What?", m),
            "`image`: the processor refuses this image or text (",
        ),
    ],
)
def test_arguments_of_the_other_experiments_that_cannot_be_meant(
    model: Engine, ask: Callable[..., Any], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        ask(model)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda m: transformers_agci.probe(m, "rows.json", **QUIET),
            "a str: a file is read by probe_data(rows, images)",
        ),
        (lambda m: transformers_agci.similarity(m, [1], **QUIET), "`data` must be what `probe_data`"),
        (lambda m: transformers_agci.occlusion(m, [1], **QUIET), "`data` must be what `probe_data`"),
        (lambda m: transformers_agci.flow(m, [1], **QUIET), "`data` must be what `probe_data`"),
        (lambda m: transformers_agci.probe(live(m)[0], **QUIET), "as transformers_agci.wrap(model, processor)"),
        (lambda m: transformers_agci.wrap(3, 4), "`model` must be a model of transformers, but is a int."),
    ],
)
def test_what_is_no_data_and_no_model(model: Engine, ask: Callable[[Engine], Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        ask(model)
    assert said in str(refused.value)


def test_what_a_notebook_shows_of_models_rows_and_runs_is_short(model: Engine, data: ProbeData, run: ProbeRun) -> None:
    assert repr(model) == "<Qwen2.5-VL, model embedded>"
    assert repr(data) == "<72 rows, 4 items from the embedded atlas>"
    assert repr(run) == "<probe: answers.lam0.jsonl, answers.lam0.5.jsonl>"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.figure(vmin="0"), "`vmin` must be a number or None, but is '0'."),
        (lambda run: run.figure(draws="9"), "`draws` must be a whole number, but is '9'."),
        (lambda run: run.statistics(seed="x"), "`seed` must be a whole number, but is 'x'."),
        (lambda run: run.evidence(margin="0.02"), "`margin` must be a number or None, but is '0.02'."),
        (lambda run: run.evidence(draws=10).figure(title=5), "`title` must be a text, but is 5."),
        (lambda run: run.statistics(draws=10).write_json(5), "`path` must be a text or a path, but is 5."),
        (lambda run: run + "s1.jsonl", "Runs are joined with runs, but one is 's1.jsonl'"),
        (lambda run: sum([run, 5]), "Runs are joined with runs, but one is 5"),
        (lambda run: 5 + run, "Runs are joined with runs, but one is 5"),
    ],
)
def test_arguments_of_a_result_that_cannot_be_meant(run: ProbeRun, ask: Callable[..., Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        ask(run)
    assert said in str(refused.value)


def test_runs_are_summed(run: ProbeRun) -> None:
    assert sum([run[:1], run[1:]]).files == run.files == (run[:1] + run[1:]).files


def test_an_occlusion_that_made_no_map_says_why(model: Engine) -> None:
    found = transformers_agci.occlusion(model, transformers_agci.probe_data(items=1, limit=1), mask_size=1000, **QUIET)
    assert found.exit_code == 1
    for ask in (found.maps, found.statistics, found.figure):
        with pytest.raises(InputError, match=r"^This run made no map, .*smaller than the mask of 1000 pixels"):
            ask()


@pytest.mark.parametrize("margin", [float("nan"), 0, 5, -0.1])
def test_an_equivalence_margin_that_is_no_share(run: ProbeRun, margin: float) -> None:
    with pytest.raises(InputError, match="`margin` must lie between 0 and 1"):
        run.evidence(margin=margin, draws=10)


def test_statistics_without_draws_and_results_without_files_are_refused(run: ProbeRun) -> None:
    with pytest.raises(InputError, match="`draws` must be a whole number of at least 1, but is 0"):
        run.statistics(draws=0)
    with pytest.raises(InputError, match="no result file: it is an empty slice"):
        run[5:].statistics()


@pytest.mark.slow
def test_a_lambda_that_a_run_does_not_have(model: Engine) -> None:
    found = transformers_agci.similarity(model, items=1, **QUIET)
    with pytest.raises(InputError, match=r"This run is at lambda 0, but 0\.5 is asked for"):
        found.statistics(0.5)
    flowed = transformers_agci.flow(model, transformers_agci.probe_data(items=1, limit=2), [0], **QUIET)
    with pytest.raises(InputError, match=r"This run is at lambda 0, but 0\.7 is asked for"):
        flowed.figure(0.7)
    with pytest.raises(InputError, match="`source` must be one of text, answer"):
        flowed.figure(0, "image")


@pytest.mark.slow
def test_two_threads_measure_similarity_of_one_model_at_their_own_lambda(model: Engine) -> None:
    wrapped = transformers_agci.wrap(*live(model))
    alone = {lam: transformers_agci.similarity(wrapped, lambdas=lam, items=1, **QUIET).rows for lam in (0, 1)}
    found: dict[float, list] = {}

    def measure(lam: float) -> None:
        found[lam] = transformers_agci.similarity(wrapped, lambdas=lam, items=1, **QUIET).rows

    threads = [threading.Thread(target=measure, args=(lam,)) for lam in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone[0] != alone[1]
    assert found == alone


@pytest.mark.slow
def test_results_of_other_items_whose_images_are_named_alike_are_not_compared(model: Engine, run: ProbeRun) -> None:
    other = transformers_agci.probe(model, transformers_agci.probe_data(items=4, seed=5), [0.5], **QUIET)
    for ask in (ProbeRun.statistics, ProbeRun.evidence):
        with pytest.raises(InputError, match="not of the same items: 000000000 has the caption"):
            ask(run[:1] + other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"method": "uniform"}, {"scope": "batch"}])
def test_a_control_that_is_attached_is_not_recorded_as_agci(kind: dict[str, str], data: ProbeData) -> None:
    module, processor = live(transformers_agci.load())
    handle = transformers_agci.attach(module, lam=0.5, **kind)
    with pytest.raises(InputError, match="would be recorded as those of agci with the scope image"):
        transformers_agci.probe(transformers_agci.wrap(module, processor), data, **QUIET)
    as_attached = transformers_agci.probe(transformers_agci.wrap(module, processor), data, **kind, **QUIET)
    assert len(as_attached.rows) == 72 * 2 // 2 * len(as_attached) and handle.lam == 0.5


def test_equal_labels_and_columns_of_ones_own_stay_apart(run: ProbeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no two of them alike"):
        transformers_agci.read_probe(*run.files, labels=["x", "x"]).statistics(draws=10)
    path = tmp_path / "own.jsonl"
    rows = [{**row, "result": "other", "lambda": 99} for row in map(json.loads, run.files[0].read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = transformers_agci.read_probe(path).to_pandas()
    assert set(table["result"]) == {"own"} and set(table["input_result"]) == {"other"} and set(table["lambda"]) == {99}


@pytest.mark.parametrize("given", [{"negatives_file": 3}, {"text_only_file": [None]}, {"labels": None}, {"files": 3}])
def test_files_and_labels_that_cannot_be_meant(given: dict[str, Any], run: ProbeRun) -> None:
    files = [given.pop("files", run.files[0])]
    with pytest.raises(InputError, match="must be a"):
        transformers_agci.read_probe(*files, **given)
    assert len(transformers_agci.read_probe(list(run.files))) == len(run)


def test_an_unreadable_reply_is_not_right_and_half_a_surrogate_pair_goes_into_arrow(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    replies = ["Yes", "\ud800", ""]
    rows = [{"image": f"{n}_0.jpg", "position": "top_left", "answer": "Yes"} for n in range(3)]
    lines = [json.dumps({**row, "prediction": reply}) for row, reply in zip(rows, replies, strict=True)]
    path.write_text("\n".join(lines))
    table = transformers_agci.read_probe(path).to_arrow()
    assert table["correct"].to_pylist() == [True, False, False] and table["prediction"][1].as_py() == "\\ud800"


def test_composites_of_the_atlas_stay_in_a_named_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of somebody's own")
    data = transformers_agci.probe_data(items=1, folder=tmp_path)
    kept = data.img_path
    del data
    assert kept.is_relative_to(tmp_path) and len(list(kept.iterdir())) == 9
    assert (tmp_path / "notes.txt").read_text() == "of somebody's own"
    with pytest.raises(InputError, match="`folder` is where composites"):
        transformers_agci.probe_data("rows.json", "images", folder=tmp_path)
