"""What goes wrong in a run of the engine: bad rows, memory, workers that die, numbers that are none."""

import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Never

import pytest
import tiny_run
import torch
from PIL import Image
from tiny_checkpoints import random_image
from tiny_run import CELLS, ITEMS, ask, before_forward, contents, probe, rows, spoil

from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prefetch import AHEAD, prefetched
from transformers_agci.inference.questions import (
    YES_NO,
    ImageFile,
    Question,
    up_to,
)
from transformers_agci.storage import manifest
from transformers_agci.storage.result_lines import FailedRow

loaded = tiny_run.loaded  # fixture
pictures = tiny_run.pictures  # fixture


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_named_and_the_rest_is_answered(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, pictures)
    questions = probe(tmp_path)
    unread = FailedRow(0, "rows.json:99", "rows.json:99: caption is missing.")
    path = tmp_path / "A.jsonl"
    summary = ask(loaded, questions, path, [0.5], workers=workers, bad_rows=[unread])
    told = [row.where for row in summary.counts.failed]
    assert told == ["rows.json:99", "rows.json:2", "rows.json:6", "rows.json:10", "rows.json:14"]
    assert summary.exit_code == 1
    assert "5 rows were skipped:" in summary.lines()[1]
    assert "1.jpg does not exist" in capfd.readouterr().err
    assert len(rows(path)) == 20
    assert [row["row"] for row in rows(tmp_path / "A.bad.jsonl")] == [1, 5, 9, 13]
    again = ask(loaded, questions, path, [0.5])
    assert (again.exit_code, again.counts.rows) == (1, 0)


def test_strict_stops_at_the_first_bad_row(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    spoil(tmp_path, pictures)
    with pytest.raises(InputError, match=r"rows\.json:2: .*1\.jpg does not exist"):
        ask(loaded, probe(tmp_path), tmp_path / "A.jsonl", strict=True)


def test_a_text_that_holds_the_image_token_is_a_bad_row(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    questions = probe(pictures)
    questions[2] = Question({}, "rows.json:3", "Is there <|image_pad|>?", questions[2].images, 0)
    summary = ask(loaded, questions, tmp_path / "A.jsonl", [0.5])
    assert [row.where for row in summary.counts.failed] == ["rows.json:3"]
    assert "<|image_pad|>" in summary.counts.failed[0].error


def test_a_path_that_leaves_its_root_is_a_bad_row(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    random_image().save(tmp_path / "secret.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ("../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg")
    outside = [ImageFile(tmp_path / "root", name, f"x:{n}") for n, name in enumerate(names)]
    questions = [*probe(pictures, 1), *(Question({}, file.where, "Is it?", (file,)) for file in outside)]
    summary = ask(loaded, questions, tmp_path / "A.jsonl", [0.5])
    assert [row.where for row in summary.counts.failed] == ["x:0", "x:1", "x:2"]
    assert len(rows(tmp_path / "A.jsonl")) == 8


def test_nothing_to_ask(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row to ask"):
        ask(loaded, [], tmp_path / "A.jsonl")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
    ids=["gpu", "cpu", "cublas"],
)
def test_out_of_memory_halves_the_batch_and_says_so(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    ask(loaded, probe(pictures), tmp_path / "whole.jsonl")
    tried: list[int] = []

    def full(size: int) -> None:
        tried.append(size)
        if size > 2:
            raise error

    def again(*_: object, **__: object) -> Never:
        raise AssertionError("prepared again")

    monkeypatch.setattr("transformers_agci.inference.columns.prepare", again)
    with before_forward(loaded, full):
        summary = ask(loaded, probe(pictures), tmp_path / "A.jsonl", workers=0)
    assert tried.count(CELLS) == 1  # the size that fitted is kept: no other block tries the whole batch
    assert set(tried[1:]) == {2}
    assert summary.counts.vision_images == ITEMS * CELLS
    assert summary.counts.halved_blocks == [0, 1, 2]
    assert any("halved" in line for line in summary.lines())
    found = manifest.read(tmp_path / "A.lam0.jsonl")
    assert found is not None
    assert found["runs"][0]["halved_blocks"] == [0, 1, 2]
    for lam in ("0", "0.5"):
        for row, expected in zip(
            rows(tmp_path / f"A.lam{lam}.jsonl"), rows(tmp_path / f"whole.lam{lam}.jsonl"), strict=True
        ):
            assert row["prediction"] == expected["prediction"]
            assert row["margin"] == pytest.approx(expected["margin"], abs=1e-4)


def test_one_row_that_does_not_fit_is_named(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    def full(size: int) -> Never:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with before_forward(loaded, full), pytest.raises(InputError, match=r"rows\.json:\d+: memory does not suffice"):
        ask(loaded, probe(pictures), tmp_path / "A.jsonl")


@pytest.mark.parametrize("stop", [YES_NO, up_to(3)], ids=["yes or no", "free text"])
def test_logits_that_are_not_numbers_are_no_answer(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, stop: Any
) -> None:
    """A row whose mask hides all its keys gives such logits; their largest one is a token like any other."""
    questions = [replace(question, stop=stop) for question in probe(pictures, 1)]

    def spoil(_: object, args: object, output: Any) -> None:
        output.logits[1] = float("nan")

    hook = loaded.model.register_forward_hook(spoil)
    try:
        summary = ask(loaded, questions, tmp_path / "A.jsonl", workers=0)
    finally:
        hook.remove()
    assert summary.exit_code == 1
    assert len(summary.counts.failed) in (2, 4)  # of every batch of four rows the second
    assert "gives logits that are not numbers" in summary.counts.failed[0].error
    for lam in ("0", "0.5"):
        assert "NaN" not in (tmp_path / f"A.lam{lam}.jsonl").read_text()
        assert len(rows(tmp_path / f"A.lam{lam}.jsonl")) == len(questions) - len(summary.counts.failed)


@pytest.mark.parametrize("stop", [YES_NO, up_to(3)], ids=["yes or no", "free text"])
def test_infinite_logits_are_no_answer(loaded: LoadedModel, pictures: Path, tmp_path: Path, stop: Any) -> None:
    """As float16 gives them where a number is too large for it; infinity is no JSON, nor is their difference."""
    questions = [replace(question, stop=stop) for question in probe(pictures, 1)]

    def spoil(_: object, args: object, output: Any) -> None:
        output.logits[1] = float("inf")

    hook = loaded.model.register_forward_hook(spoil)
    try:
        summary = ask(loaded, questions, tmp_path / "A.jsonl", [0.5], workers=0)
    finally:
        hook.remove()
    assert len(summary.counts.failed) in (2, 4)  # of every batch of four rows the second
    assert "gives logits that are not numbers" in summary.counts.failed[0].error
    text = (tmp_path / "A.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_halved_batches_of_a_processor_that_gives_lists(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes of images as a list of pairs, as some processors give them: each half gets its own."""
    from transformers_agci.inference import prepare

    real, seen = prepare.prompt.tokenize, []

    def with_sizes(processor: Any, prompts: Any, images: Any) -> Any:
        made = dict(real(processor, prompts, images))
        return {**made, "image_sizes": [[image.width, image.height] for of_prompt in images for image in of_prompt]}

    def note_sizes(_: object, args: object, given: dict[str, Any]) -> tuple[Any, Any]:
        seen.append(len(given.pop("image_sizes")))
        if len(given["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return args, given

    monkeypatch.setattr(prepare.prompt, "tokenize", with_sizes)
    hook = loaded.model.register_forward_pre_hook(note_sizes, with_kwargs=True)
    try:
        summary = ask(loaded, [q for q in probe(pictures, 1) if "dog" in q.text], tmp_path / "A.jsonl", [0.5])
    finally:
        hook.remove()
    assert summary.exit_code == 0
    assert seen[:3] == [CELLS, CELLS // 2, CELLS // 2]


@dataclass(frozen=True)
class Deadly:
    """An image whose decoder takes its process down."""

    key: str = "deadly"

    def open(self) -> Image.Image:
        os._exit(66)


def test_a_worker_that_dies_is_an_error_with_the_rows_name(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    questions = probe(pictures)
    questions[9] = Question({}, "rows.json:10", "Is it?", (Deadly(),), 1)
    with pytest.raises(InputError, match=r"^rows\.json:10: .*died at this row"):
        ask(loaded, questions, tmp_path / "A.jsonl", workers=2)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(loaded: LoadedModel, pictures: Path, tmp_path: Path, workers: int) -> None:
    ask(loaded, probe(pictures), tmp_path / "none" / "A.jsonl")
    ask(loaded, probe(pictures), tmp_path / "some" / "A.jsonl", workers=workers)
    assert contents(tmp_path / "some") == contents(tmp_path / "none")


def test_workers_are_only_a_little_ahead(tmp_path: Path) -> None:
    def make(item: int, at: Callable[[int], None]) -> int:
        (tmp_path / str(item)).touch()
        return item

    with prefetched(range(40), make, workers=2, where=str) as ahead:
        assert next(ahead) == 0
        most = 1 + 2 * AHEAD  # the one that was taken, and two for each worker
        end = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < most and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)  # as good as always for more, if there is more to come
        assert len(list(tmp_path.iterdir())) == most
        assert list(ahead) == list(range(1, 40))


def test_images_are_let_go(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the run, the tensors of two columns are alive at most: the one at hand and the one before."""
    from transformers_agci.inference import prepare

    alive: set[int] = set()
    most: list[int] = []
    real = prepare.prepare

    def counted(*args: Any) -> Any:
        prepared = real(*args)
        alive.add(id(prepared))
        weakref.finalize(prepared, alive.discard, id(prepared))
        most.append(len(alive))
        return prepared

    monkeypatch.setattr(prepare, "prepare", counted)
    ask(loaded, probe(pictures), tmp_path / "A.jsonl", [0.5], batch_size=1, block_rows=1)
    assert len(most) == ITEMS * CELLS
    assert max(most) <= 2


def test_workers_are_not_started_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Docker's 64 MB: a process that fills them dies of a bus error, which looks like a bad image."""
    import os
    from types import SimpleNamespace

    from transformers_agci.inference import prefetch

    def made_by(free: int) -> set[int]:
        monkeypatch.setattr(prefetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        with prefetch.prefetched([1, 2, 3], lambda item, at: os.getpid(), 2, str) as made:
            return set(made)

    assert made_by(64 * 2**20) == {os.getpid()}
    said = capsys.readouterr().err
    assert "/dev/shm has 64 MB free, and 2 processes that prepare images need 512 MB there" in said
    assert "--shm-size=2g" in said
    assert os.getpid() not in made_by(2**30)
    assert not capsys.readouterr().err
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # torchrun's processes all look before any of them has filled it
    assert made_by(2**30) == {os.getpid()}
    said = capsys.readouterr().err
    assert "1024 MB free, and 16 processes that prepare images need 4096 MB there" in said
    assert "--shm-size=4g" in said


def test_a_worker_without_shared_memory_does_not_blame_the_image() -> None:
    """What Linux does where /dev/shm has no room left for a page that is written."""
    import os
    import signal

    def make(item: int, at: Callable[[int], None]) -> int:
        at(item)
        os.kill(os.getpid(), signal.SIGBUS)
        return item

    with (
        pytest.raises(InputError, match=r"row 7: .*Bus error.*/dev/shm has probably no room left: .*--shm-size"),
        prefetched([7], make, 1, lambda row: f"row {row}") as made,
    ):
        next(made)


@pytest.mark.parametrize("begun_in_a_pool", [False, True], ids=["main thread", "thread of a pool"])
def test_workers_end_well_whichever_thread_takes_what_they_make(begun_in_a_pool: bool) -> None:
    """A process that a pool's thread has forked waits for that thread at its end, for itself: with exit code 1, which
    ends the run where another run of the process has put up the handler for that.
    """
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    def run() -> list[Any]:
        with prefetched([1, 2, 3], lambda item, at: item, 2, str) as made, ThreadPoolExecutor(1) as thread:
            workers = multiprocessing.active_children()
            assert thread.submit(list, made).result() == [1, 2, 3]
            assert len(workers) == 2
        return workers

    if begun_in_a_pool:
        with ThreadPoolExecutor(1) as pool:
            workers = pool.submit(run).result()
    else:
        workers = run()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_workers_take_nothing_down_that_another_thread_keeps(tmp_path: Path) -> None:
    """A tensor of a GPU there: CUDA ends a child that frees one. The stand-in writes down in which process it goes."""
    import os
    import threading
    from concurrent.futures import ThreadPoolExecutor

    gone = tmp_path / "gone"

    class OnGpu:
        def __del__(self) -> None:
            if not gone.exists():
                gone.write_text(str(os.getpid()))

    kept = threading.local()
    kept.tensor = OnGpu()
    with prefetched([1], lambda item, at: item, 1, str) as made, ThreadPoolExecutor(1) as thread:
        assert thread.submit(next, made).result() == 1
    assert not gone.exists()
    del kept
    assert gone.read_text() == str(os.getpid())
