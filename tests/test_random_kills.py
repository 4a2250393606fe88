"""Runs that are killed at random moments, again and again, end with the bytes of an undisturbed run.

The processes are forked from the test, where torch and the model are loaded already: a kill costs milliseconds, and a
hundred of them are affordable. The moments are drawn with a fixed seed, but what a process is doing then differs from
run to run.
"""

import contextlib
import io
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_checkpoints import random_image

from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.questions import ImageFile, Question, QuestionSet
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.storage.result_file import merge_shards
from transformers_agci.storage.result_names import Shard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked"),
]

LAMBDAS = [0.0, 0.5]
IMAGES = 24
KILLS = 15  # of each kind
Work = Callable[[], None]


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl")), device="cpu"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> QuestionSet:
    """Two about each image; the image of every tenth is missing."""
    folder = tmp_path_factory.mktemp("images")
    asked = []
    for number in range(2 * IMAGES):
        name = f"{number // 2}.png"
        if number % 20:
            random_image(number, 60, 60).save(folder / name)
        image = ImageFile(folder, name if number % 10 else "missing.png", f"rows.json:{number + 1}")
        asked.append(Question({"id": number}, image.where, f"Is there a dog {number}?", (image,), number // 2))
    return QuestionSet(asked)


def asking(
    loaded: LoadedModel, questions: QuestionSet, path: Path, workers: int = 0, shard: Shard | None = None
) -> Work:
    options = AnswerOptions(2, 4, workers, run=RunOptions(shard, progress=False))
    return lambda: void(answer_questions(loaded, questions, LAMBDAS, output_paths(path, LAMBDAS), options))


def void(_: object) -> None:
    return None


def started(work: Work, environment: dict[str, str] | None = None) -> int:
    """A process of its own, in a process group of its own with all that it starts; returns its number."""
    process = os.fork()
    if process:
        return process
    try:
        os.setpgid(0, 0)
        os.environ.update(environment or {})
        with contextlib.redirect_stderr(io.StringIO()):  # the skipped rows
            work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(processes: Sequence[int]) -> int:
    """Kill them for good with everything they started; how many were still at work."""
    for process in processes:
        try:
            os.killpg(process, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(process, signal.SIGKILL)  # it has not come to its own group yet
    return sum(ended(process) == -signal.SIGKILL for process in processes)


def group_environment(rank: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def results(path: Path) -> dict[str, bytes]:
    """All files beside the answers but the manifests; nothing may be left of a killed run."""
    names = {file.name: file for file in path.parent.iterdir()}
    kinds = {
        f"{path.stem}.lam{lam}{ending}" for lam in ("0", "0.5") for ending in (".jsonl", ".bad.jsonl", ".manifest.json")
    }
    assert set(names) == kinds
    return {name: file.read_bytes() for name, file in names.items() if not name.endswith(".manifest.json")}


@pytest.fixture(scope="module")
def whole(
    loaded: LoadedModel, questions: QuestionSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    """What an undisturbed process writes, and how many seconds it takes."""
    path = tmp_path_factory.mktemp("whole") / "A.jsonl"
    begin = time.monotonic()
    assert ended(started(asking(loaded, questions, path))) == 0
    return results(path), time.monotonic() - begin


@pytest.mark.parametrize("kind", ["alone", "with workers", "shards", "group", "mixed"])
def test_random_kills(
    loaded: LoadedModel, questions: QuestionSet, whole: tuple[dict[str, bytes], float], tmp_path: Path, kind: str
) -> None:
    wanted, seconds = whole
    draw = random.Random(f"kills {kind}")
    killed, rounds = 0, 0
    while killed < KILLS:
        rounds += 1
        path = tmp_path / str(rounds) / "A.jsonl"
        path.parent.mkdir()
        while killed < KILLS:
            now = draw.choice(["alone", "with workers", "shards", "group"]) if kind == "mixed" else kind
            processes = start(now, loaded, questions, path)
            time.sleep(draw.uniform(0.0, 0.7 * seconds))
            landed = kill(processes)
            killed += landed > 0
            if not landed:
                break  # they were through
        finish(kind, loaded, questions, path)
        assert results(path) == wanted
    assert rounds < KILLS


def start(kind: str, loaded: LoadedModel, questions: QuestionSet, path: Path) -> list[int]:
    if kind == "shards":
        return [started(asking(loaded, questions, path, shard=Shard(index, 3))) for index in range(3)]
    if kind == "group":
        port = free_port()
        work = asking(loaded, questions, path)
        return [started(work, group_environment(rank, port)) for rank in range(2)]
    return [started(asking(loaded, questions, path, workers=2 if kind == "with workers" else 0))]


def finish(kind: str, loaded: LoadedModel, questions: QuestionSet, path: Path) -> None:
    """The same command once more, undisturbed."""
    for process in start("alone" if kind == "mixed" else kind, loaded, questions, path):
        assert ended(process) == 0
    if kind == "shards":
        for of_lambda in output_paths(path, LAMBDAS):
            merge_shards(of_lambda)
