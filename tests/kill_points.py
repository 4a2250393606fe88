"""A call killed before its n-th change to the disk, or after some time, in a process of its own."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Action = Callable[[], int]  # what is run; it returns an exit code

CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate")


def killed_at(number: int, action: Action) -> bool:
    """Run `action` and send it SIGKILL before its change `number` (from 0); False if it ended before that."""
    return _was_killed(_start(action, number))


def killed_after(seconds: float, action: Action) -> bool:
    """Run `action` and send it SIGKILL after some time; False if it ended before that."""
    child = _start(action)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return _was_killed(child)


def _was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _start(action: Action, number: int = -1) -> int:
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
            if number >= 0:
                sys.addaudithook(_killer(number))
            code = action()
        finally:
            os._exit(code)
    return child


def _killer(number: int) -> Callable[[str, tuple[Any, ...]], None]:
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    return hook
