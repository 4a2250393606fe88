"""Runs that answer no question (similarity, occlusion, flow): blocks of work into a result file that can go on.

The engine's `run_questions` asks and writes answers; here the work of a block is any function. What is shared with
it: the result file with its lock, manifest and resume, the progress line, and how bad rows are told.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from transformers_agci.errors import InputError
from transformers_agci.inference.processes import Team
from transformers_agci.inference.progress import Progress
from transformers_agci.storage import manifest
from transformers_agci.storage.result_file import FailedRow, ResultFile, Shard

Counts = dict[str, int | float]


class Done(NamedTuple):
    """A finished block: its result rows in input order, and the rows that could not be done."""

    rows: list[dict[str, Any]]
    failed: list[FailedRow]


# (blocks to do in order, the progress line, counts to add to) -> one Done per block
Work = Callable[[Sequence[int], Progress, Counts], Iterator[Done]]


@dataclass(frozen=True)
class RunOptions:
    """How a command wants its run: see the options of the same names."""

    overwrite: bool = False
    strict: bool = False  # stop at the first bad row
    progress: bool = True
    shard: Shard | None = None


@dataclass(frozen=True)
class BlockSummary:
    """What a run did: rows written now and before, bad rows, and what the work counted."""

    path: Path
    rows: int
    rows_before: int
    seconds: float
    failed: list[FailedRow] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 where rows were bad."""
        return 1 if self.failed else 0

    def lines(self, unit: str = "rows") -> list[str]:
        """What a command prints at the end."""
        before = f", {self.rows_before} were there before" if self.rows_before else ""
        said = [
            f"{self.rows} {unit} in {self.seconds:.1f} s{before}"
            + "".join(f"; {name.replace('_', ' ')} {value:g}" for name, value in self.counts.items())
            + "."
        ]
        if self.failed:
            said.append(f"{len(self.failed)} {unit} could not be done:")
            said += [f"  {row.error}" for row in self.failed[:20]]
            said += [f"  ... and {len(self.failed) - 20} more"] if len(self.failed) > 20 else []
        return [*said, f"Written: {self.path}"]


class _Share(NamedTuple):
    """What one process of the run did."""

    rows: int
    rows_before: int
    counts: Counts
    failed: dict[int, FailedRow]  # by row number
    entry: dict[str, Any]  # for the manifest


def run_blocks(
    path: Path,
    block_sizes: Sequence[int],
    work: Work,
    settings: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    *,
    bad_rows: Sequence[FailedRow] = (),
    options: RunOptions | None = None,
    steps_of: Callable[[int], int] | None = None,
) -> BlockSummary:
    """Do the blocks that `path` lacks, in order, each forced to disk when it is finished.

    block_sizes  rows of each block
    settings     what must be equal for the file to go on; another value is an InputError that names it
    bad_rows     rows that could not even be read; told with those that fail here
    steps_of     block -> steps of the progress line that it is; default: its rows

    Under torchrun every process does its share and the first one merges; so does each --shard, without merging.
    Raises InputError where there is nothing to do at all, and with `strict` at the first bad row.
    """
    options = options or RunOptions()
    if options.strict and bad_rows:
        raise InputError(bad_rows[0].error)
    if not block_sizes:
        raise InputError(
            "There is no row to work on"
            + (f": all {len(bad_rows)} are bad, for instance {bad_rows[0].error}" if bad_rows else ".")
        )
    started, start_time = time.monotonic(), manifest.now()
    team = Team()
    share = team.share(options.shard)
    file = ResultFile(
        path, block_sizes, settings, notes, shard=share, joined=team.shard is not None, overwrite=options.overwrite
    )
    with contextlib.ExitStack() as stack:
        stack.callback(team.close)
        team.open([file], stack)
        todo = [
            block
            for block in range(len(block_sizes))
            if block not in file.finished and (share is None or share.owns(block))
        ]
        before = file.rows_before if team.leads else 0
        steps = steps_of or block_sizes.__getitem__
        bar = Progress(sum(map(steps, todo)), options.progress and team.leads)
        written, counts, finished = 0, Counts(), False
        try:
            for block, done in zip(todo, work(todo, bar, counts), strict=True):
                for row in done.failed:
                    if options.strict:
                        raise InputError(row.error)
                    bar.say(f"agci: {row.error}")
                file.write(block, done.rows, done.failed)
                written += len(done.rows)
            finished = True
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"Memory ran out ({str(error).splitlines()[0]}); give a smaller --batch_size or "
                "--max_pixels, or --dtype bfloat16. Finished blocks are kept."
            ) from error
        finally:
            bar.close()
            mine = _Share(
                written,
                before,
                counts,
                {row.row: row for rows in file.failed.values() for row in rows},
                {
                    "started": start_time,
                    "seconds": round(time.monotonic() - started, 3),
                    "rows": written,
                    "shard": f"{share.index}/{share.count}" if share else None,
                    **counts,
                    "peak_memory": manifest.peak_memory(),
                    **manifest.environment(),
                },
            )
            if not finished:
                _record(file, [mine], bad_rows)
        shares = team.from_all(mine)
        if team.leads:
            _record(file, shares, bad_rows)
            if options.shard is None:
                file.merge()
    failed = {number: row for each in shares for number, row in each.failed.items()}
    summed = Counts()
    for each in shares:
        for name, value in each.counts.items():
            summed[name] = summed.get(name, 0) + value
    return BlockSummary(
        path,
        sum(each.rows for each in shares),
        sum(each.rows_before for each in shares),
        time.monotonic() - started,
        [*bad_rows, *(failed[number] for number in sorted(failed))],
        summed,
    )


def _record(file: ResultFile, shares: Sequence[_Share], bad_rows: Sequence[FailedRow]) -> None:
    for share in shares:
        file.record({**share.entry, "failed_rows": len(bad_rows) + len(share.failed)})
