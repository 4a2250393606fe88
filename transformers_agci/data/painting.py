"""Paint composites, in this process or in several; the order of the results never depends on how many."""

import hashlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import NamedTuple

from transformers_agci.data.composites import alone, compose, encode_jpeg, image_name, with_target
from transformers_agci.data.grid import Grid
from transformers_agci.data.pool import PoolPair
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import open_atomic


class Task(NamedTuple):
    """One item's work: its pair and its distractors (none: the target stands alone)."""

    target: PoolPair
    distractors: tuple[PoolPair, ...]


@dataclass(frozen=True)
class Painter:
    """Paints an item's nine composites into `folder`; sent to the worker processes. `cells` is the pool's file."""

    cells: Path
    folder: Path
    grid: Grid
    quality: int
    background: str

    def paint(self, task: Task) -> list[str]:
        """Write the nine JPEGs of an item; returns their SHA-256, in the order of the cells."""
        target = task.target.image(self.cells)
        distractors = [pair.image(self.cells) for pair in task.distractors]
        hashes = []
        for k in range(len(self.grid)):
            images = with_target(target, distractors, k) if distractors else alone(target, k)
            data = encode_jpeg(compose(images, self.grid, self.background), self.quality)
            path = self.folder / image_name(task.target.key, k)
            # Not synced: a run that goes on compares the hashes. Unfinished files lie beside the pool, which goes.
            with open_atomic(path, sync=False, temporary_in=self.cells.parent) as file:
                file.write(data)
            hashes.append(hashlib.sha256(data).hexdigest())
        return hashes


def in_order(
    work: Callable[[Task], list[str]], tasks: Iterable[Task], workers: int
) -> Generator[list[str], None, None]:
    """The results in the order of the tasks; only a few per worker are under way at a time."""
    if workers <= 1:
        yield from map(work, tasks)
        return
    # spawn: the datasets library has started threads by now, which a forked child would lose
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    pending: deque[Future[list[str]]] = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(work, task))
            if len(pending) >= 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "A worker process was killed (out of memory?); finished items are kept: run the same command again, "
            "perhaps with fewer `workers`."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
