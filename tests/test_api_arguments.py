"""The Python API refuses what cannot be meant, in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_run
import pytest
from api_run import QUIET, coloured, live
from PIL import Image

import transformers_agci
from transformers_agci.api.probe import ProbeRun
from transformers_agci.errors import InputError
from transformers_agci.inference.engine import Engine

model = api_run.model  # fixture
run = api_run.run  # fixture


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


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: transformers_agci.set_lambda("x" * 5000, 0.5), "`checkpoint` must be a file or folder, but is 'xxx"),
        (lambda: transformers_agci.set_lambda("m" * 256, 0.5), "`checkpoint` must be a file or folder, but is 'mmm"),
        (lambda: transformers_agci.convert_llava("m", "\ud800"), r"`output` must be a file or folder, but is '\ud800'"),
        (lambda: transformers_agci.read_occlusion(Path("x" * 5000)), "`folder` must be a file or folder, but is "),
        (lambda: transformers_agci.plan("a.jsonl", 10**400), "`difference` must be a number, but is 1000"),
        (lambda: transformers_agci.sweep("a.jsonl", dev_share=10**400), "`dev_share` must be a number or None, but is"),
    ],
)
def test_names_that_no_file_can_have_and_numbers_that_no_float_holds(ask: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        ask()
    assert said in str(refused.value)
    assert len(str(refused.value)) < 200


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
def test_results_of_other_items_whose_images_are_named_alike_are_not_compared(model: Engine, run: ProbeRun) -> None:
    other = transformers_agci.probe(model, transformers_agci.probe_data(items=4, seed=5), [0.5], **QUIET)
    for ask in (ProbeRun.statistics, ProbeRun.evidence):
        with pytest.raises(InputError, match="not of the same items: 000000000 has the caption"):
            ask(run[:1] + other)


@pytest.mark.parametrize("given", [{"negatives_file": 3}, {"text_only_file": [None]}, {"labels": None}, {"files": 3}])
def test_files_and_labels_that_cannot_be_meant(given: dict[str, Any], run: ProbeRun) -> None:
    files = [given.pop("files", run.files[0])]
    with pytest.raises(InputError, match="must be a"):
        transformers_agci.read_probe(*files, **given)
    assert len(transformers_agci.read_probe(list(run.files))) == len(run)
