"""The one prefetcher: inputs made ahead of the model, in order, a bounded number at a time.

Decoding and preprocessing rows happens in processes (torch's DataLoader): processors hold Python's lock for most of
their time. Masked copies of one image are made in threads: a copy is 17 MB of pixels, which need not cross a pipe, and
starting new processes for each image would take longer than its copies.
"""

import contextlib
import gc
import multiprocessing
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import thread as futures
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from transformers_agci.errors import InputError
from transformers_agci.inference.process_group import local_size

AHEAD = 2  # items a process may be ahead: what bounds the memory
THREADS_AHEAD = 3  # items that threads make ahead
SHARED_MEMORY = "/dev/shm"  # where tensors cross on Linux
ROOM = 2**28  # bytes of it for a process: two batches of 18 images of 840x840 pixels, and some more
DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited unexpectedly with |is )?(.*?)(?:\.|$)")
BUS_ERROR = "Bus error"  # what becomes of a process that writes where shared memory has no room

Item = TypeVar("Item")
Made = TypeVar("Made")
At = Callable[[int], None]  # called with the number of the row that is being worked on


def default_workers(device_type: str) -> int:
    """None on a CPU, which has the model to run; 4 beside a GPU."""
    return 0 if device_type == "cpu" else 4


def room_for(workers: int) -> tuple[int, str | None]:
    """So many processes, or 0 and why: where shared memory is small, a process dies in the middle of a copy.

    Docker gives a container 64 MB of it, and PyTorch's tensors cross nowhere else. All processes of a torchrun look at
    the same memory before any of them has filled it.
    """
    if not workers or not Path(SHARED_MEMORY).is_dir():
        return workers, None
    free, started = shutil.disk_usage(SHARED_MEMORY).free, workers * local_size()
    if free >= started * ROOM:
        return workers, None
    return 0, (
        f"{SHARED_MEMORY} has {free / 2**20:.0f} MB free, and {started} processes that prepare images need "
        f"{started * ROOM / 2**20:.0f} MB there: the main process prepares them. With Docker, "
        f"--shm-size={max(2, -(-started * ROOM // 2**30))}g gives more."
    )


@contextlib.contextmanager
def prefetched(
    items: Sequence[Item], make: Callable[[Item, At], Made], workers: int, where: Callable[[int], str]
) -> Iterator[Iterator[Made]]:
    """`make(item, at)` for each item, in order; with `workers` > 0 in that many processes, `AHEAD` ahead of use each.

    `make` tells `at` the number of the row it is working on, and `where` says what a row is called ("rows.json:10"):
    a process that dies is an InputError that names its row. What is made may hold tensors, which cross in shared
    memory; where that has no room for them, the main process makes them and says so.
    """
    workers, small = room_for(workers)
    if small is not None:
        print(f"agci: {small}", file=sys.stderr)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn") if workers else None
    places = multiprocessing.Array("q", 2 * max(workers, 1), lock=False)  # of each worker its process and its row
    settings = {
        "batch_size": None,
        "num_workers": workers,
        "prefetch_factor": AHEAD if workers else None,
        "collate_fn": _as_it_is,
        "multiprocessing_context": context,
        "worker_init_fn": _settle,
        "generator": torch.Generator(),  # its seed is not taken from the run's random numbers
    }
    try:
        with contextlib.closing(_in_order(_Items(items, make, where, places), settings)) as ahead:
            next(ahead)
            yield ahead
    except RuntimeError as error:
        raise _explained(error, places, where) from error


def _in_order(items: Dataset[Any], settings: dict[str, Any]) -> Generator[Any, None, None]:
    """First None, once the processes are there, then what they make.

    They are forked by the thread that begins the run, whoever asks for what they make: a child takes down what the
    other threads keep for themselves, tensors of a GPU among it, which CUDA refuses after a fork.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
        loaded = iter(DataLoader(items, **settings))
    yield None
    yield from loaded  # the iterator lives here alone: closing this generator ends its processes


class _Items(Dataset[Any]):
    """The items as a data set: asking for one makes it, in whatever process asks."""

    def __init__(self, items: Sequence[Any], make: Any, where: Callable[[int], str], places: Any) -> None:
        self.items, self.make, self.where, self.places = items, make, where, places

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        place = 2 * worker.id if worker else 0
        if worker:
            self.places[place] = multiprocessing.current_process().pid or 0

        def at(row: int) -> None:
            self.places[place + 1] = row

        try:
            return self.make(self.items[index], at)
        except InputError:
            raise
        except Exception as error:
            raise RuntimeError(f"preparing {self.where(self.places[place + 1])} failed ({error!r})") from error


def _as_it_is(made: Made) -> Made:
    return made


def _settle(worker: int) -> None:
    """Make a forked process one that can end well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the main process's to handle
    gc.freeze()  # what the main process has left to collect may be on a GPU, where a child must not free anything
    # Forked by a thread of a pool, it would wait for that thread at its end: for itself, which is an error.
    getattr(futures, "_threads_queues", {}).pop(threading.current_thread(), None)


def _explained(error: RuntimeError, places: Any, where: Callable[[int], str]) -> Exception:
    """The error itself, or where a worker has died an InputError that names the row it was at."""
    death = DEATH.search(str(error))
    if death is None:
        return error
    cause = DEATH.search(str(error.__cause__))  # the signal that ended it, which the error itself does not name
    why = (cause or death)[2]
    processes = {int(number) for number in death[1].split(",")}
    rows = [places[place + 1] for place in range(0, len(places), 2) if places[place] in processes]
    at = f"{where(rows[0])}: the process that prepares images died at this row" if rows else "A worker process died"
    how = f" ({why})" if why else ""
    what = "Look at the image"
    if BUS_ERROR in why:
        what = f"{SHARED_MEMORY} has probably no room left: give it more (with Docker, --shm-size)"
    return InputError(
        f"{at}{how}; finished blocks are kept. {what}, or give `workers` 0 to prepare it in the main process."
    )


def prefetched_in_threads(items: Sequence[Item], make: Callable[[Item], Made]) -> Generator[Made, None, None]:
    """`make` for each item, in order, `THREADS_AHEAD` ahead of use."""
    with ThreadPoolExecutor(THREADS_AHEAD) as threads:
        source = iter(items)
        waiting: list[Future[Made]] = [threads.submit(make, item) for item in islice(source, THREADS_AHEAD)]
        while waiting:
            made = waiting.pop(0).result()
            waiting += [threads.submit(make, item) for item in islice(source, 1)]
            yield made
