"""Real processes on one probe: killed, under torchrun, as a job array, for all six families' own commands."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci.data.grid import POSITIONS
from transformers_agci.families import paper_families

ROOT = Path(__file__).resolve().parents[1]
ITEMS = 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.json and the images of 12 items in nine places, below one folder."""
    folder = tmp_path_factory.mktemp("probe")
    rows = []
    for item in range(ITEMS):
        for cell, position in enumerate(POSITIONS):
            name = f"{item}_{cell}.jpg"
            random_image(item * 9 + cell, 90, 90).save(folder / name)
            rows.append({"id": item, "image": name, "caption": f"a dog {item}", "position": position, "answer": "Yes"})
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def arguments(checkpoint: Path, probe: Path, answers: Path, *more: str) -> list[str]:
    return [
        "--model_path",
        str(checkpoint),
        "--eval_file",
        str(probe / "rows.json"),
        "--img_path",
        str(probe),
        "--answer_file",
        str(answers),
        "--global_context_lambda",
        "0",
        "0.5",
        "--batch_size",
        "9",
        *more,
    ]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def agci(*words: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "transformers_agci.cli", *words],
        env=environment(),
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_script(script: Path, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """One process of a family's own script, started in `folder`."""
    return subprocess.run(
        [sys.executable, str(script), *words],
        env=environment(),
        text=True,
        cwd=folder,
        capture_output=True,
        timeout=600,
        check=False,
    )


def torchrun(processes: int, script: Path, *words: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*launch, str(script), *words], env=environment(), text=True, capture_output=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def written(folder: Path) -> dict[str, bytes]:
    """The result files below a folder; nothing but they and their manifests may be left."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {f"A.lam{lam}.{ending}" for lam in ("0", "0.5") for ending in ("jsonl", "manifest.json")}
    return {name: data for name, data in files.items() if not name.endswith("manifest.json")}


@pytest.fixture(scope="module")
def whole(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one undisturbed process writes with the LLaVA checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    agci("probe", *arguments(tiny_checkpoint("llava"), probe, folder / "A.jsonl"))
    results = written(folder)
    assert all(len(data.splitlines()) == ITEMS * 9 for data in results.values())
    return results


def start_and_kill(words: list[str], answers: Path, when: int) -> None:
    """Kill the process, for good, as soon as the file at lambda 0 or a part of it has `when` bytes: with work left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "transformers_agci.cli", *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    files = [answers.with_name("A.lam0.jsonl"), answers.with_name("A.lam0.parts")]
    try:
        while process.poll() is None:
            found = [file for path in files for file in ([path] if path.is_file() else path.glob("*.jsonl"))]
            if sum(file.stat().st_size for file in found) >= when:
                break
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        ended = process.wait()
    assert ended == -signal.SIGKILL  # it lived until then, and some answer is missing
    written = [line for file in answers.parent.rglob("*.jsonl") for line in file.read_bytes().splitlines()]
    assert sum(line.count(b'"prediction":') for line in written) < 2 * ITEMS * 9


def test_killed_twice_and_resumed_it_writes_the_same_bytes(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    words = ["probe", *arguments(tiny_checkpoint("llava"), probe, tmp_path / "A.jsonl")]
    for when in (1, len(whole["A.lam0.jsonl"]) // 2):
        start_and_kill([*words, "--workers", "2"], tmp_path / "A.jsonl", when)  # its workers must not keep the lock
    agci(*words)
    assert written(tmp_path) == whole


def test_a_killed_shard_is_redone_and_merged_to_the_same_bytes(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    words = ["probe", *arguments(tiny_checkpoint("llava"), probe, tmp_path / "A.jsonl")]
    start_and_kill([*words, "--shard", "1/3"], tmp_path / "A.jsonl", 1)
    files = [str(tmp_path / f"A.lam{lam}.jsonl") for lam in ("0", "0.5")]
    assert "lacks" in agci("merge-shards", *files, expect=2)
    for index in (2, 1, 0):
        agci(*words, "--shard", f"{index}/3")
    agci("merge-shards", *files)
    assert written(tmp_path) == whole


def test_a_second_process_is_refused_while_the_first_writes(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    words = ["probe", *arguments(tiny_checkpoint("llava"), probe, tmp_path / "A.jsonl")]
    first = subprocess.Popen(
        [sys.executable, "-m", "transformers_agci.cli", *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while first.poll() is None and not (tmp_path / "A.lam0.jsonl").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # so that it surely still holds the file
        assert "is being written by another process" in agci(*words, expect=2)
    finally:
        first.send_signal(signal.SIGCONT)
        first.wait()
    assert written(tmp_path) == whole


@pytest.mark.parametrize(("family", "most"), [(family, 3 if family == "llava" else 2) for family in FAMILIES])
def test_the_familys_own_command_with_several_processes(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path: Path, family: str, most: int
) -> None:
    script = ROOT / "scripts" / paper_families()[family].name / "eval_laion_bias_data.py"
    results = []
    for processes in range(1, most + 1):
        folder = tmp_path / str(processes)
        words = arguments(tiny_checkpoint(family), probe, folder / "A.jsonl", "--quiet")
        if processes == 1:
            done = run_script(script, words, tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            torchrun(processes, script, *words)
        results.append(written(folder))
    assert all(result == results[0] for result in results)


def test_another_number_of_processes_goes_on_where_the_first_stopped(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    words = arguments(tiny_checkpoint("llava"), probe, tmp_path / "A.jsonl", "--quiet")
    start_and_kill(["probe", *words], tmp_path / "A.jsonl", 1)
    torchrun(2, ROOT / "scripts" / "LLaVA-v1.5" / "eval_laion_bias_data.py", *words)
    assert written(tmp_path) == whole


def test_a_checkpoint_of_another_family_is_refused(
    tiny_checkpoint: Callable[[str], Path], probe: Path, tmp_path: Path
) -> None:
    script = ROOT / "scripts" / "Qwen3-VL" / "eval_laion_bias_data.py"
    words = arguments(tiny_checkpoint("llava"), probe, tmp_path / "A.jsonl")
    done = run_script(script, words, tmp_path)
    assert done.returncode == 2
    assert "is a LLaVA-v1.5 checkpoint" in done.stderr
