"""A command killed before its n-th change to the disk, in a process of its own."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from transformers_agci.cli import main

CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate")


def killed_at(number: int, command: Sequence[str]) -> bool:
    """Run `agci command` and send it SIGKILL before its change `number` (from 0); False if it ended before that."""
    child = os.fork()
    if child == 0:
        _end_like_a_kill(number, command)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _end_like_a_kill(number: int, command: Sequence[str]) -> None:
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    code = 70
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
        sys.addaudithook(hook)
        code = main(list(command))
    finally:
        os._exit(code)
