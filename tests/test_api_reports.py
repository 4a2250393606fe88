"""The Python API of what is made from results, and of the instrument: one path with the commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_results import write_results

import transformers_agci as agci
from transformers_agci.cli import main
from transformers_agci.errors import InputError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two results of 30 items with margins."""
    return [str(path) for path in write_results(tmp_path_factory.mktemp("results"), 30)]


def said(words: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out.rstrip("\n")


def test_a_sweep_is_the_command_s(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        ({"choose_by": "auc", "dev_share": 0.4}, ["--choose_by", "auc", "--dev_share", "0.4"]),
        ({"nested": True}, ["--nested"]),
    ]
    for number, (options, words) in enumerate(cases):
        found = agci.sweep(agci.read_probe(files), **options)
        ours, theirs = tmp_path / f"{number}.json", tmp_path / f"{number}.command.json"
        found.write_json(ours)
        assert said(["sweep", *files, *words, "--json", theirs], capsys) == found.text == str(found)
        assert ours.read_bytes() == theirs.read_bytes()
        assert found._repr_html_().count("<table>") == (0 if options.get("nested") else 2)
        assert (
            len(found.chosen) == 5
            if options.get("nested")
            else found.chosen in ("baseline (lambda 0)", "AGCI (lambda 0.5)")
        )


def test_a_plan_is_the_command_s(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for pilot in (files, files[:1]):
        found = agci.plan(pilot, 2)
        assert said(["plan", *pilot, "--difference", 2], capsys) == found.text
        assert [effect.plans[0].power for effect in found.effects] == [0.8, 0.8] and found.pilot_items == 30
        assert "From a pilot of 30 items" in found._repr_html_()


def test_numbers_of_numpy_are_numbers(files: list[str]) -> None:
    assert agci.plan(files, np.int64(2)).text == agci.plan(files, 2).text
    assert agci.sweep(files, dev_share=np.float32(0.5)).text == agci.sweep(files, dev_share=0.5).text


def test_a_report_is_the_command_s(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = agci.make_report(agci.read_probe(files, labels=["a", "b"]), tmp_path / "ours.html", title="<t>", draws=20)
    words = ["--labels", "a", "b", "--title", "<t>", "--draws", 20, "--output", tmp_path / "theirs.html"]
    assert "give `img_path`" in page.text
    assert said(["report", *files, *words], capsys) == page.text.replace("ours", "theirs").replace(
        "`img_path`", "--img_path"
    )
    assert page.path.read_bytes() == (tmp_path / "theirs.html").read_bytes()
    assert page.size == page.path.stat().st_size and page.path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert 'ours.html" target="_blank">ours.html</a>' in page._repr_html_()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("make_report", {"images": "all"}, "`images` must be one of page, folder, none, but is 'all'"),
        ("make_report", {"occlusion": 3}, "`occlusion` must be what `occlusion` gave, or a folder of it, but is 3"),
        ("make_report", {"ruler": 3}, "`ruler` must be what `ruler` gave, or the ruler.json of it, but is 3"),
        ("make_report", {"title": 5}, "`title` must be a text, but is 5."),
        ("make_report", {"output": 5}, "`output` must be a text or a path, but is 5."),
        ("make_report", {"output": "r.json"}, "must end in .html"),
        ("sweep", {"choose_by": "luck"}, "`choose_by` must be one of balanced, auc, evenness, but is 'luck'"),
        ("sweep", {"dev_share": "half"}, "`dev_share` must be a number or None, but is 'half'"),
        ("sweep", {"dev_share": 2, "nested": True}, "`dev_share` is 2, but must lie between 0 and 1"),
        ("sweep", {"dev_share": 0.5, "nested": True}, "but `nested` chooses on four of five folds: omit one of"),
        ("sweep", {"dev_share": 0.5, "held_out": ["x.jsonl"]}, "but with `held_out` all items of `results` choose"),
        ("sweep", {"dev_share": 1.5}, "`dev_share` is 1.5, but must lie between 0 and 1"),
        ("sweep", {"held_out": 3}, "`held_out` must be a file or a list of files, but is 3"),
        ("sweep", {"nested": True, "held_out": ["x.jsonl"]}, "omit it or `held_out`"),
        ("plan", {"difference": 0}, "`difference` must lie between 0 and 100 points, but is 0"),
        ("plan", {"difference": "2"}, "`difference` must be a number, but is '2'"),
    ],
)
def test_what_cannot_be_meant_is_refused(files: list[str], name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        getattr(agci, name)(files, **arguments)
    assert message in str(caught.value)


def test_no_results_and_too_many_are_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`results` is empty"):
        agci.make_report([], tmp_path / "r.html")
    with pytest.raises(InputError, match="must be one result, or two"):
        agci.plan([*files, *files], 2)
    for methods in ("stock", []):
        with pytest.raises(InputError, match="`method"):
            agci.compare(methods=methods)
    with pytest.raises(InputError, match="`models` is an empty list"):
        agci.compare([])
    with pytest.raises(InputError, match="`items` must be a whole number of at least 3, but is 2"):
        agci.ruler(2)


def test_held_out_results_that_are_short_are_named(files: list[str]) -> None:
    for held_out in (files[0], files[:1]):
        with pytest.raises(InputError, match=r"^`held_out` has 1 result, but there are 2 to choose from; give one on"):
            agci.sweep(files, held_out)


def test_what_a_run_gives_can_be_kept_in_sets(files: list[str]) -> None:
    """Arrays and lists inside are no reason for a TypeError; two of them are not compared number by number."""
    run = agci.read_probe(files)
    statistics, evidence, again = run.statistics(draws=10), run.evidence(draws=10), run.statistics(draws=10)
    found = {run, run[:1], statistics, again, evidence, agci.sweep(run), agci.plan(run, 2)}
    assert len(found) == 7 and statistics in found and statistics != again


def test_runs_in_folders_of_their_own_are_numbered() -> None:
    """Two live models of one kind: the folder of a session's run, which nobody named, is no name."""
    data = agci.probe_data(items=1, limit=2)
    runs = [agci.probe(data=data, lambdas=[0, 0.5], progress=False) for _ in range(2)]
    names = [f"{label}, run {number}" for number in (1, 2) for label in ("baseline (lambda 0)", "AGCI (lambda 0.5)")]
    assert [result.label for result in (runs[0] + runs[1]).results] == names


@pytest.mark.slow
def test_the_ruler_in_this_process_is_that_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = agci.ruler(3, folder=tmp_path / "ours", progress=False)
    text = said(["ruler", "--items", 3, "--output_dir", tmp_path / "theirs"], capsys)
    assert text == f"{found.text}\nfigure: {tmp_path / 'theirs' / 'ruler.png'}"
    assert found.file.read_bytes() == (tmp_path / "theirs" / "ruler.json").read_bytes()
    assert (tmp_path / "ours" / "margins.jsonl").read_bytes() == (tmp_path / "theirs" / "margins.jsonl").read_bytes()
    assert isinstance(found.figure(), Figure) and found._repr_html_().count("<tr>") == 30
    frame = found.to_pandas()
    assert frame.shape[0] == 29 and frame["unevenness_margin"].notna().all()


@pytest.mark.slow
def test_two_models_are_compared_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name and a live model; the command on two checkpoints has the same numbers, and all of them in its --json."""
    methods, live = ["stock", "bapa"], agci.load()
    found = agci.compare(["embedded", live], methods, items=24, folder=tmp_path / "ours", progress=False)
    assert len(found) == 2 and len(found.overview.rows) == 4 and isinstance(found[1].figure(), Figure)
    assert found._repr_html_().count("<table>") == 1 and found[0]._repr_html_().count("<table>") == 6
    one, two = (found.overview.rows[k][1:] for k in (1, 3))
    assert one == two  # the same model
    words = ["compare", "--model", "embedded", "embedded", "--methods", *methods, "--items", 24, "--quiet"]
    text = said([*words, "--output_dir", tmp_path / "theirs", "--json", tmp_path / "all.json"], capsys)
    numbers = json.loads((tmp_path / "all.json").read_text())["models"]
    assert len(numbers) == 2 and text.count("all models on all 24 items") == 1
    evidence = [json.loads(json.dumps(model["evidence"])) for model in numbers.values()]
    assert evidence[0] == evidence[1] == json.loads(json.dumps(found[0].numbers["evidence"]))
