"""Rows done, rows per second, time left: one moving line on a terminal, a line a minute in a log file."""

import sys
import time
from typing import TextIO

EVERY = 60.0  # seconds between two lines of a log file
REDRAW = 0.2  # seconds between two states of the line on a terminal


class Progress:
    """Counts the rows of this run; `total` is what is left to do. `shown=False` says nothing at all."""

    def __init__(self, total: int, shown: bool = True, stream: TextIO | None = None) -> None:
        self.total = total
        self.done = 0
        self.shown = shown and total > 0
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.started = self.last = time.monotonic()

    def add(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if self.shown and now - self.last >= (REDRAW if self.terminal else EVERY):
            self.last = now
            self._say()

    def say(self, text: str) -> None:
        """A message of its own line, which does not break the moving one."""
        if self.terminal and self.shown:
            self.stream.write("\r\033[K")
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self.shown and self.terminal:
            self._say()
            self.stream.write("\n")
            self.stream.flush()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def _say(self) -> None:
        rate = self.done / max(self.seconds, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        text = f"{self.done}/{self.total} rows ({self.done / self.total:.0%}), {rate:.1f} rows/s, {_span(left)} left"
        if self.terminal:
            self.stream.write(f"\r\033[K{text}")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()


def _span(seconds: float) -> str:
    """
    >>> _span(59), _span(3700)
    ('59 s', '1 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
