"""Ctrl-C between two pieces of work, never within one.

torch's C++ loses a KeyboardInterrupt that arrives while it asks a Python object for its shape, and raises something
else in its place ("could not determine the shape of object type"), which would end in a traceback.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interrupted_between_pieces() -> Iterator[Callable[[], None]]:
    """Hold a Ctrl-C back until the yielded function is called, which then raises KeyboardInterrupt.

    A second Ctrl-C is not held back. Outside the main thread, which alone gets signals, nothing changes.
    """
    pending = threading.Event()

    def check() -> None:
        if pending.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return

    def hold(number: int, frame: FrameType | None) -> None:
        pending.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)
