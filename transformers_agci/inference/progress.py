"""Rows done, rows per second, time left: a bar on a terminal, in a log file a line at both ends and one a minute."""

import sys

from tqdm import tqdm

REDRAW = 0.2  # seconds between two states of the bar on a terminal
EVERY = 60.0  # seconds between two lines in a log file


class Progress:
    """Counts the rows (or another `unit`) of a run; `total` is what is left to do. `shown=False` says nothing."""

    def __init__(self, total: int, shown: bool = True, unit: str = "row") -> None:
        self.done = 0
        terminal = sys.stderr.isatty()
        pace = REDRAW if terminal else EVERY
        self._bar = tqdm(
            total=total,
            unit=unit,
            disable=not shown or total == 0,
            dynamic_ncols=terminal,
            mininterval=pace,
            maxinterval=pace,
        )

    def add(self, rows: int) -> None:
        """So many rows more are done."""
        self.done += rows
        self._bar.update(rows)

    def say(self, text: str) -> None:
        """A message of its own line, which does not break the moving one."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the last state standing."""
        self._bar.close()
