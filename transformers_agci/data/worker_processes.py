"""Work in several processes at once: results in order, a killed process named, none that outlives its parent."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from transformers_agci.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    processes: int,
    option: str = "workers",
    start: tuple[Callable[..., None], tuple[Any, ...]] | None = None,
) -> Generator[Result, None, None]:
    """The results in the order of the tasks; only a few per process are under way at a time.

    With one process all is done in the caller's. `start` is a function and its arguments, called in each process
    before its first task; `option` is what the user knows the number of processes by. Where the caller
    stops early, as on Ctrl-C, the tasks under way are broken off as by a kill.
    """
    if processes <= 1:
        if start is not None:
            start[0](*start[1])
        yield from map(work, tasks)
        return
    # spawn: a forked child would lose the threads that torch or the datasets library has started by now
    context = get_context("spawn")
    ended, end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(processes, context, _begin, (start, ended))
    try:
        yield from _results(executor, work, tasks, ahead=4 * processes)
    except BrokenProcessPool:
        raise InputError(
            "A worker process was killed or could not begin (out of memory? a script whose work does not stand below "
            f"`if __name__ == '__main__':`?); finished items are kept: run it again, perhaps with fewer `{option}`."
        ) from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        end.send_bytes(b"end")  # every process sees it: none reads it
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        end.close()
        ended.close()


def _results(
    executor: ProcessPoolExecutor, work: Callable[[Task], Result], tasks: Iterable[Task], ahead: int
) -> Generator[Result, None, None]:
    """The results in the order of the tasks, of which at most `ahead` are handed out before theirs is taken."""
    pending: deque[Future[Result]] = deque()
    for task in tasks:
        pending.append(executor.submit(_do, work, task))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _do(work: Callable[[Task], Result], task: Task) -> Result:
    if _could_not_start:
        raise _could_not_start[0]
    return work(task)


_could_not_start: list[Exception] = []  # of this process; raised by the executor itself it would lose its words


def _begin(start: tuple[Callable[..., None], tuple[Any, ...]] | None, ended: connection.Connection) -> None:
    """Leave Ctrl-C to the parent, and end with it even when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()
    if start is not None:
        try:
            start[0](*start[1])
        except Exception as error:
            _could_not_start.append(error)


def _end_with_parent(ended: connection.Connection) -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel, ended])
        os._exit(1)
