"""Ctrl-C that torch cannot lose: held back until a piece of work is done, or remembered until then.

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


@contextlib.contextmanager
def interruption_remembered() -> Iterator[Callable[[], None]]:
    """Let a Ctrl-C interrupt at once, and once more where it was lost.

    The yielded function raises KeyboardInterrupt if one came before; so does the end of the block, and an error that
    arrives after a Ctrl-C counts as what was raised in its place. Nothing changes outside the main thread, or where
    the program has a handler of its own.
    """
    came = threading.Event()

    def check() -> None:
        if came.is_set() and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    own = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not own:
        yield check
        return

    def remember(number: int, frame: FrameType | None) -> None:
        came.set()
        own(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
        check()
    except Exception as error:
        if came.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, own)
