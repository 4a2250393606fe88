"""An event loop in a thread of its own, so that asynchronous work goes on while rows are written, and also where the
caller (a notebook) has a loop already."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoopThread:
    """Runs coroutines, from any thread. A program that ends does not wait for them."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._closed, self._lock = False, threading.Lock()
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Let a coroutine run; RuntimeError where the loop is closed."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("The event loop is closed.")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine."""
        return self.start(work).result()

    def close(self, ending: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine, cancel what is left of the others, end the loop."""
        with self._lock:
            self._closed = True
            ended = asyncio.run_coroutine_threadsafe(_and_cancel(ending), self._loop)
        try:
            ended.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _and_cancel(ending: Coroutine[Any, Any, None]) -> None:
    try:
        await ending
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
