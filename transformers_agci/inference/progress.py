"""How far a run is, and what it did: the progress line, the counts, and the sentences that a command prints at the end.

On a terminal the progress is tqdm's moving bar. In a log file a carriage return would glue the whole run into one
line: there it is plain lines, the first after 5 seconds, so that one sees early whether the pace is right. A
notebook has a widget, or the bar where ipywidgets is not installed.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from transformers_agci.errors import counted
from transformers_agci.storage.result_lines import FailedRow
from transformers_agci.storage.result_names import Shard

REDRAW = 0.2  # seconds between two states of the bar on a terminal
LOG_AT = (5.0, 15.0, 30.0, 60.0)  # seconds of the first lines in a log file; then one every minute
SLOWEST = 0.1  # per second that is said as such
LISTED = 20  # skipped rows that the summary names

Say = Callable[[str], None]  # takes the lines that a user reads while the work goes on
Tick = Callable[[int, int], None]  # takes how many are done, and how many there are


class Progress:
    """Counts the rows (or another `unit`) of a run; `total` is what is left to do. `shown=False` says nothing."""

    def __init__(self, total: int, shown: bool = True, unit: str = "row") -> None:
        self.done = 0
        self.total, self.unit = total, unit
        self._bar: tqdm | None = None
        self._log: _LogLines | None = None
        if shown and total > 0:
            if _in_notebook():
                self._bar = _notebook_bar()(total=total, unit=unit, leave=False)
            elif sys.stderr is not None and sys.stderr.isatty():
                self._bar = tqdm(
                    total=total, unit=unit, dynamic_ncols=True, mininterval=REDRAW, maxinterval=REDRAW, file=sys.stderr
                )
            else:
                self._log = _LogLines(total, unit)

    def add(self, rows: int) -> None:
        """So many rows more are done."""
        self.done += rows
        if self._bar is not None:
            self._bar.update(rows)
        elif self._log is not None:
            self._log.reached(self.done)

    def say(self, text: str) -> None:
        """A message of its own line, which does not break the moving one."""
        if self._bar is not None:
            self._bar.clear()
        tell(text)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Leave the last state standing."""
        if self._bar is not None:
            self._bar.close()
        elif self._log is not None:
            self._log.close(self.done)


@contextlib.contextmanager
def ticking(unit: str, shown: bool = True) -> Iterator[Tick]:
    """A bar for work that says itself how far it is; it appears with the first call of what is yielded."""
    bar: Progress | None = None

    def tick(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or Progress(total - done + 1, shown, unit)
        bar.add(1)

    try:
        yield tick
    finally:
        if bar:
            bar.close()


class _LogLines:
    """Progress in a log file, for instance "agci: 4500 of 90000 rows, 25.0 rows/s, 57 min left"."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit = total, unit
        self.started = time.monotonic()
        self.last = -1  # rows that the last line counted
        self._due = iter(LOG_AT)
        self._next = next(self._due)

    def reached(self, done: int) -> None:
        seconds = time.monotonic() - self.started
        if seconds >= self._next:
            while self._next <= seconds:
                self._next = next(self._due, self._next + 60.0)
            self._line(done, seconds)

    def close(self, done: int) -> None:
        if done != self.last and self.last >= 0:  # a run that was over before its first line needs none
            self._line(done, time.monotonic() - self.started)

    def _line(self, done: int, seconds: float) -> None:
        self.last = done
        pace = f", {rate_text(done, seconds, self.unit)}" if done else ""
        left = f", {_duration((self.total - done) * seconds / done)} left" if done and done < self.total else ""
        tell(f"agci: {done} of {counted(self.total, self.unit)}{pace}{left}")


def _in_notebook() -> bool:
    """Whether the process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def tell(text: str) -> None:
    """A line on the standard error output, if somebody listens: `agci probe 2>&1 | head -1` goes on with its work."""
    if sys.stderr is not None:
        with contextlib.suppress(BrokenPipeError):
            print(text, file=sys.stderr, flush=True)


def _notebook_bar() -> type[tqdm]:
    """A widget where ipywidgets draws it; else the bar of a terminal, which tqdm.auto would precede with a warning."""
    if find_spec("ipywidgets") is None:
        return tqdm
    from tqdm.notebook import tqdm as widget

    return widget  # type: ignore[no-any-return]


def rate_text(done: int, seconds: float, unit: str) -> str:
    """How fast a run is; seconds for each where a second does a small part of one only.

    >>> rate_text(50, 20, "row"), rate_text(3, 125, "item"), rate_text(0, 3, "row")
    ('2.5 rows/s', '41.7 s/item', '0.0 rows/s')
    """
    rate = done / seconds if seconds else 0.0
    return f"{seconds / done:.1f} s/{unit}" if 0 < rate < SLOWEST else f"{rate:.1f} {unit}s/s"


def _duration(seconds: float) -> str:
    """Words for a time to wait.

    >>> _duration(8), _duration(95), _duration(7300)
    ('8 s', '2 min', '2 h 2 min')
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Counts:
    """What a run did; the tests hold these, never seconds. Works that count more subclass it."""

    rows: int = 0  # result rows written by this run
    already_done: int = 0  # result rows of this process's share that were there
    failed: list[FailedRow] = field(default_factory=list)  # rows without a result

    def plus(self, other: Self) -> Self:
        """The counts of two processes together."""
        return type(self)(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    def details(self) -> list[str]:
        """What the summary's first line says beside the rows."""
        return []

    def remarks(self) -> list[str]:
        """Further lines of the summary."""
        return []

    def earlier(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Look at what the manifest keeps of the runs that this one goes on from, before it begins."""

    def record(self, seconds: float) -> dict[str, Any]:
        """What the manifest keeps of them."""
        own = {each.name for each in fields(Counts)}
        return {"rows": self.rows} | {e.name: getattr(self, e.name) for e in fields(self) if e.name not in own}


@dataclass(frozen=True)
class RunSummary:
    """How a run ended. With a `shard` it is not complete: `agci merge-shards` joins the parts."""

    outputs: tuple[Path, ...]
    counts: Counts
    seconds: float
    unit: str = "row"
    shard: Shard | None = None
    blocks: int = 0  # of the whole input

    @property
    def complete(self) -> bool:
        """Whether the result files are whole."""
        return self.shard is None

    @property
    def exit_code(self) -> int:
        """1 where rows were skipped."""
        return 1 if self.counts.failed else 0

    def lines(self) -> list[str]:
        """What a command prints at the end."""
        counts = self.counts
        done = f", {counts.already_done} already done" if counts.already_done else ""
        rate = rate_text(counts.rows, self.seconds, self.unit)
        first = f"{counted(counts.rows, self.unit)} in {self.seconds:.1f} s ({rate}){done}"
        said = ["; ".join([first, *counts.details()]) + "."]
        if self.shard is not None and self.shard.index >= self.blocks:
            said.append(
                f"This shard has nothing to do: the input has {counted(self.blocks, 'block')}, fewer than the "
                f"{self.shard.count} shards."
            )
        return [*said, *counts.remarks(), *_skipped(counts.failed), *self._endings()]

    def _endings(self) -> list[str]:
        if self.complete:
            return [f"Written: {path}" for path in self.outputs]
        return [f"This shard is done; when all are: agci merge-shards {path}" for path in self.outputs]


def joined(parts: Sequence[RunSummary]) -> RunSummary:
    """Several runs over the same rows as one: a row that every one of them skipped is named once."""
    counts = functools.reduce(type(parts[0].counts).plus, (part.counts for part in parts))
    counts = replace(counts, failed=list(dict.fromkeys(counts.failed)))
    outputs = tuple(path for part in parts for path in part.outputs)
    return replace(parts[0], outputs=outputs, counts=counts, seconds=sum(part.seconds for part in parts))


def _skipped(failed: Sequence[FailedRow]) -> list[str]:
    if not failed:
        return []
    said = [f"{counted(len(failed), 'row')} {'was' if len(failed) == 1 else 'were'} skipped:"]
    said += [f"  {row.error}" for row in failed[:LISTED]]
    said += [f"  ... and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
    return [*said, "The same command does not ask them again; once they are mended, give `overwrite`."]
