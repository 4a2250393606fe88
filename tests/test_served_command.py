"""Commands on a served model: the probe, the evidence, a benchmark, and a probe that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import served_run
from PIL import Image
from served_run import KEY, everything_written
from stub_server import Says, completion, stub_server

from transformers_agci.cli import main
from transformers_agci.experiments.position import evidence
from transformers_agci.experiments.position.results import read_results

WORDS = ["probe", "--engine", "openai", "--model", "stub", "--items", "2", "--quiet", "--api_key_env", "MY_KEY"]

quick_and_keyed = served_run.quick_and_keyed  # fixture of every test


def by_caption(number: int, body: dict) -> Says:
    """Yes for captions of an even length; a pure function of the question, as a model at temperature 0."""
    text = body["messages"][0]["content"][-1]["text"]
    return Says(body=completion(*(("Yes", -0.1, -2.0) if len(text) % 2 else ("No", -2.0, -0.1))))


def test_the_probe_of_a_served_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with stub_server(by_caption) as server:
        words = [*WORDS, "--base_url", server.url, "--answer_file", str(tmp_path / "A.jsonl"), "--text_only"]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"lambda as served (from the server); model stub at {server.url}" in out
        assert "3600 prompt tokens, 72 answer tokens" in out
        assert len(server.bodies) == 36 + 4
        assert len(server.bodies[-1]["messages"][0]["content"]) == 1  # text alone
        result = read_results(tmp_path / "A.jsonl")
        assert result.yes is not None and result.yes.has_margins and result.yes.rows == 18
        assert result.label == "A, as served by openai"
        assert main([*words, "--global_context_lambda", "0.5"]) == 2
        assert "--global_context_lambda 0.5 cannot be set on a server" in capsys.readouterr().err
    assert KEY not in everything_written(tmp_path)


def test_the_evidence_names_the_builds_that_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def script(number: int, body: dict) -> Says:
        says = by_caption(number, body)
        assert isinstance(says.body, dict)
        says.body["system_fingerprint"] = "fp_2" if number > 20 else "fp_1"
        return says

    with stub_server(script) as server:
        assert main([*WORDS, "--base_url", server.url, "--answer_file", str(tmp_path / "A.jsonl")]) == 0
    result = read_results(tmp_path / "A.jsonl")
    assert result.builds == result.select(result.items).builds == ("stub fp_1", "stub fp_2")
    said = "A, as served by openai was answered by several models or builds of its server: stub fp_1, stub fp_2."
    assert said in evidence._notes([result], [], None)
    (tmp_path / "A.manifest.json").unlink()
    assert read_results(tmp_path / "A.jsonl").builds == ()


def test_a_benchmark_of_a_served_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "1.jpg")
    rows = [
        {"question_id": str(n), "image": "1.jpg", "image_source": "1", "category": "random", "answer": answer}
        | {"question": f"Is there a {word} in the image?"}
        for n, (word, answer) in enumerate([("cat", "yes"), ("dog", "no")], 1)
    ]
    (tmp_path / "pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with stub_server(lambda number, body: Says(body=completion("Yes"))) as server:
        words = ["--engine", "openai", "--base_url", server.url, "--model", "stub", "--resamples", "0", "--quiet"]
        data = ["--data", str(tmp_path / "pope.jsonl"), "--answer_file", str(tmp_path / "A.jsonl")]
        assert main(["benchmark", "pope", *words, *data]) == 0
    assert "lambda as served, protocol official" in capsys.readouterr().out
    score = json.loads((tmp_path / "A.score.json").read_text())
    assert (score["lambda"], score["categories"]["random"]["accuracy"]) == ("as served", 0.5)


def test_mistakes_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--engine", "openai"], "--model is needed with --engine openai"),
        (["--engine", "openai", "--model", "m"], "--base_url is needed"),
        (
            ["--engine", "openai", "--model", "m", "--base_url", "http://h/v1", "--dtype", "float32"],
            "--dtype is for the",
        ),
        (
            ["--engine", "openai", "--model", "m", "--base_url", "http://h/v1", "--method", "random"],
            "--method random ca",
        ),
        (["--base_url", "http://h/v1"], "--base_url is for the engine openai, but the engine is transformers"),
    ):
        assert main(["probe", *words, "--items", "1", "--answer_file", str(tmp_path / "A.jsonl")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_probe_goes_on_and_its_bytes_are_those_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def slow(number: int, body: dict) -> Says:
        says = by_caption(number, body)
        says.seconds = 0.02
        return says

    with stub_server(slow) as server:
        words = [*WORDS, "--items", "6", "--base_url", server.url, "--concurrency", "2"]
        killed = subprocess.Popen(
            [sys.executable, "-m", "transformers_agci.cli", *words, "--answer_file", str(tmp_path / "A.jsonl")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while len(server.bodies) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        before = len(server.bodies)
        assert 60 <= before < 108
        assert main([*words, "--answer_file", str(tmp_path / "A.jsonl")]) == 0
        assert len(server.bodies) <= before + 108 - 36  # the first block was kept
        assert main([*words, "--answer_file", str(tmp_path / "B.jsonl")]) == 0
    assert (tmp_path / "A.jsonl").read_bytes() == (tmp_path / "B.jsonl").read_bytes()
    assert KEY not in everything_written(tmp_path)
