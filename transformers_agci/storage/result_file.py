"""Results on disk: plain JSON lines in input order that survive being killed, resumed and sharded.

Beside a result file `A.jsonl` there may stand

    A.manifest.json   the settings it was made with (manifest.py)
    A.bad.jsonl       the rows that were skipped, each with its reason; only if there are any
    A.lock            while a process writes
    A.parts/          the blocks of a sharded run, until they are merged

The unit is the block. A run of one process appends blocks to `A.jsonl` in order. Several processes write part files,
one line per block, `{"block": 3, "rows": [...], "failed": [...]}`, which are merged in block order: the same bytes.
What a kill leaves half-written is cut off and done again.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.storage import manifest
from transformers_agci.storage.atomic import open_atomic, remove_leftovers, write_atomic
from transformers_agci.storage.journal import append_through, cut_off, dump_row, whole_lines
from transformers_agci.storage.lock import Lock
from transformers_agci.storage.manifest import START_OVER
from transformers_agci.storage.result_lines import (
    FailedRow,
    PartLine,
    Row,
    check_in_blocks,
    check_same_row,
    part_lines,
    read_failed,
)
from transformers_agci.storage.result_names import Shard, sibling_path

PATIENCE = 10.0  # seconds to wait for shards that look at the whole file's lock


class ResultFile:
    """The results of one experiment at one lambda; use it as a context manager.

    Opening takes the lock, compares the settings, checks what is there and cuts off a torn block; then `finished`
    holds the blocks that need no work.

    block_sizes  the number of rows of each block
    rows         the input rows, which the results must repeat in this order; None does not look
    shard        blocks go to part files
    joined       the shards are the processes of one torchrun, which open together: the first of them locks and checks
                 for all, and merges at the end

    Raises InputError if another process writes the file, if it was made with other settings (the difference is
    named), if it is damaged or not one of ours, or if it cannot be written; `overwrite` starts over.
    """

    def __init__(
        self,
        path: Path,
        block_sizes: Sequence[int],
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        *,
        rows: Sequence[Row] | None = None,
        shard: Shard | None = None,
        joined: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.block_sizes = list(block_sizes)
        self.settings = dict(settings)
        self.notes = dict(notes or {})
        self.input = rows
        self.shard = shard
        self.is_main = not joined or shard is None or shard.index == 0
        self._in_job_array = shard is not None and not joined  # a shard that knows nothing of the others
        self.overwrite = overwrite
        self.finished: set[int] = set()
        self.failed: dict[int, list[FailedRow]] = {}
        self._starts = [0, *accumulate(self.block_sizes)]
        self._locks: list[Lock] = []
        self._out: Any = None
        self._out_path = self.path

    @property
    def parts(self) -> Path:
        """The folder of the part files."""
        return sibling_path(self.path, ".parts")

    @property
    def bad(self) -> Path:
        """The list of skipped rows."""
        return sibling_path(self.path, ".bad.jsonl")

    # --- opening and closing ---

    def __enter__(self) -> "ResultFile":
        try:
            with self._writing(then=""):
                self._open()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._release()

    @contextlib.contextmanager
    def _writing(self, then: str = " Finished blocks are kept; the same command goes on from there.") -> Iterator[None]:
        """What the disk refuses is one sentence."""
        try:
            yield
        except OSError as error:
            raise InputError(f"Cannot write {self.path}: {error.strerror or error}.{then}") from error

    def _open(self) -> None:
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; name a file for the answers.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        if self.overwrite and self.is_main:
            if self._in_job_array:
                raise InputError(
                    "`overwrite` with `shard` would delete the other shards' work: "
                    f"delete {self.path} and {self.parts} by hand, then start the shards without it."
                )
            self.delete()
        with self._briefly_whole():
            if self.is_main:
                remove_leftovers(self.path, self.bad, manifest.path_of(self.path))
                manifest.open_for(self.path, self.settings, self.notes, self.block_sizes)
            self._scan()
        if self.shard is None and self.parts.exists():
            self.shard = Shard(0, 1)
        if self.shard is not None:
            self.parts.mkdir(exist_ok=True)
            self._out_path = self.parts / f"{self.shard.index}-of-{self.shard.count}.jsonl"
            cut_off(self._out_path, max((line.end for line in whole_lines(self._out_path, dict)), default=0))
        self._out = self._out_path.open("ab", buffering=0)

    def _close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None

    def delete(self) -> None:
        """Remove the results and everything that stands beside them; InputError where that is another experiment's."""
        manifest.refuse_another_kind(self.path, self.settings.get("experiment"))
        for file in (self.path, self.bad, manifest.path_of(self.path)):
            file.unlink(missing_ok=True)
        if self.parts.exists():
            shutil.rmtree(self.parts)

    # --- locks ---

    def _lock(self) -> None:
        """The whole file for a run that merges, a part of it for a shard that does not; never both at once."""
        if not self.is_main:
            return
        whole = Lock(sibling_path(self.path, ".lock"))
        if not self._in_job_array:
            self._take(whole)
            for part_lock in sorted(self.parts.glob("*.lock")):
                self._drop(self._take(Lock(part_lock)))
            return
        assert self.shard is not None
        self.parts.mkdir(exist_ok=True)
        self._take(Lock(self.parts / f"{self.shard.index}-of-{self.shard.count}.lock"))
        with self._briefly_whole():
            pass  # nobody holds it for longer

    @contextlib.contextmanager
    def _briefly_whole(self) -> Iterator[None]:
        """For a shard: the lock of the whole file, which the other shards take for moments, too."""
        if not self._in_job_array:
            yield
            return
        whole = self._take(Lock(sibling_path(self.path, ".lock")), PATIENCE)
        try:
            yield
        finally:
            self._drop(whole)

    def _take(self, lock: Lock, seconds: float = 0.0) -> Lock:
        if not lock.acquire(seconds):
            raise InputError(
                f"{self.path} is being written by another process (it holds {lock.path}); "
                "wait for it, or name another answer file."
            )
        self._locks.append(lock)
        return lock

    def _drop(self, lock: Lock) -> None:
        self._locks.remove(lock)
        lock.release()

    def _release(self) -> None:
        while self._locks:
            self._drop(self._locks[-1])
        with contextlib.suppress(OSError):
            self.parts.rmdir()  # only if nothing is left in it

    # --- what is finished ---

    def rows_of(self, blocks: Iterable[int]) -> int:
        """How many result rows these blocks have."""
        return sum(self.block_sizes[block] - len(self.failed.get(block, ())) for block in blocks)

    def failed_rows(self, blocks: Iterable[int]) -> list[FailedRow]:
        """The skipped rows of these blocks."""
        return [row for block in blocks for row in self.failed.get(block, ())]

    def missing(self) -> list[int]:
        """The blocks that are not finished."""
        return [block for block in range(len(self.block_sizes)) if block not in self.finished]

    def _scan(self) -> None:
        """Find the finished blocks, check that they are this input's, and cut off what is torn."""
        found = read_failed(self.bad)
        check_in_blocks(self.bad, found, self._starts)
        self.failed = found
        ends, prefix = self._prefix()
        lines = self.rows_of(range(prefix))
        if prefix == len(self.block_sizes) and lines < len(ends):
            raise InputError(f"{self.path} holds {len(ends)} rows, more than the {lines} of this run; {START_OVER}.")
        self.finished = set(range(prefix))
        self.failed = {block: rows for block, rows in found.items() if block in self.finished}
        for part in part_lines(self.parts, self.block_sizes):
            if part.block not in self.finished:
                self._check_part(part)
                self.finished.add(part.block)
                if part.failed:
                    self.failed[part.block] = part.failed
        if self.is_main and not self._in_job_array:
            cut_off(self.path, ends[lines - 1] if lines else 0)
            if {block: rows for block, rows in self.failed.items() if block < prefix} != found:
                self._write_failed(range(prefix))

    def _prefix(self) -> tuple[list[int], int]:
        """Where each row of the result file ends, and how many blocks, from the first on, stand there whole."""
        numbers = iter(self._numbers())
        ends: list[int] = []
        for line in whole_lines(self.path, dict):
            ends.append(line.end)
            number = next(numbers, None)
            if self.input is not None and number is not None:
                check_same_row(line.content, self.input[number], f"{self.path}:{line.number}", number)
        lines = 0
        for block in range(len(self.block_sizes)):
            lines += self.rows_of([block])
            if lines > len(ends):
                return ends, block
        return ends, len(self.block_sizes)

    def _numbers(self) -> Iterator[int]:
        """The numbers of the input rows that have a result, in order."""
        for block in range(len(self.block_sizes)):
            skipped = {row.row for row in self.failed.get(block, ())}
            for number in range(self._starts[block], self._starts[block + 1]):
                if number not in skipped:
                    yield number

    def _check_part(self, part: PartLine) -> None:
        if self.input is None:
            return
        skipped = {row.row for row in part.failed}
        numbers = (n for n in range(self._starts[part.block], self._starts[part.block + 1]) if n not in skipped)
        for row, number in zip(part.rows, numbers, strict=False):
            check_same_row(row, self.input[number], f"{part.part}:{part.number}", number)

    # --- writing ---

    def write(self, block: int, rows: Sequence[Row], failed: Sequence[FailedRow] = ()) -> None:
        """Append a finished block and force it to disk; `rows` in input order, without the failed ones.

        Raises InputError where the disk is full, or where the file was removed since it was opened.
        """
        if len(rows) + len(failed) != self.block_sizes[block]:
            raise AssertionError(f"block {block} has {self.block_sizes[block]} rows, not {len(rows)} + {len(failed)}")
        with self._writing():
            self._check_still_there()
            if failed:
                self.failed[block] = list(failed)
            if self.shard is None:
                if failed:  # first, so that a block's rows never stand without the reason why some are missing
                    self._write_failed()
                data = b"".join(map(dump_row, rows))
            else:
                data = dump_row({"block": block, "rows": list(rows), "failed": [row._asdict() for row in failed]})
            append_through(self._out, data)
        self.finished.add(block)

    def _check_still_there(self) -> None:
        try:
            same = os.path.samestat(self._out_path.stat(), os.fstat(self._out.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise InputError(
                f"{self._out_path} was removed or replaced while this run was writing it; start the same command "
                "again: it goes on from what is there."
            )

    def _write_failed(self, blocks: Iterable[int] | None = None) -> None:
        rows = [
            {"block": block, **row._asdict()}
            for block in sorted(self.failed if blocks is None else self.failed.keys() & set(blocks))
            for row in self.failed[block]
        ]
        if rows:
            write_atomic(self.bad, map(dump_row, rows))
        else:
            self.bad.unlink(missing_ok=True)

    def earlier_runs(self) -> list[dict[str, Any]]:
        """What the manifest keeps of the runs so far."""
        found = manifest.read(self.path)
        return list(found["runs"]) if found else []

    def record(self, run: Mapping[str, Any]) -> None:
        """Add what a run measured to the manifest."""
        with self._writing(), self._briefly_whole():
            manifest.add_run(self.path, run, self.settings, self.notes, self.block_sizes)

    # --- merging ---

    def merge(self) -> None:
        """Join the part files into the result file, in block order.

        Raises InputError if a block is missing: a shard did not finish, or wrote to a disk that this machine lacks.
        """
        self._close()
        with self._writing():
            if self.parts.exists():
                self._merge()
            elif not self.path.exists():
                raise InputError(f"{self.path} was removed during the run; start the same command again.")

    def _merge(self) -> None:
        self.failed = read_failed(self.bad)
        ends, prefix = self._prefix()
        parts = {part.block: part._replace(rows=[]) for part in part_lines(self.parts, self.block_sizes)}
        self.finished = {*range(prefix), *parts}
        if missing := self.missing():
            raise InputError(
                f"{self.parts} lacks {len(missing)} of {len(self.block_sizes)} blocks (the first is "
                f"{missing[0]}): let every shard i/n finish, block b belongs to shard b % n, then merge."
            )
        lines = self.rows_of(range(prefix))
        self.failed = {block: rows for block, rows in self.failed.items() if block < prefix}
        with open_atomic(self.path) as out:
            if lines:
                with self.path.open("rb") as file:
                    out.write(file.read(ends[lines - 1]))
            for block in range(prefix, len(self.block_sizes)):
                out.writelines(map(dump_row, parts[block].read_rows()))
                if parts[block].failed:
                    self.failed[block] = parts[block].failed
            self._write_failed()
        shutil.rmtree(self.parts)


class Merged(NamedTuple):
    """A result file made of its shards: how many rows it has, and which have none."""

    path: Path
    rows: int
    failed: list[FailedRow]


def merge_shards(path: Path) -> Merged:
    """Join the parts of a sharded run whose shards have all finished.

    Raises InputError if blocks are missing, a shard still writes, or there is nothing to merge.
    """
    content = manifest.read(path)
    if content is None:
        raise InputError(
            f"There is no {manifest.path_of(path)}: name the answer file as the shards were given it "
            "(with several lambdas A.lam0.jsonl, A.lam0.5.jsonl)."
        )
    sizes = manifest.block_sizes(content)
    with ResultFile(path, sizes, content["settings"], content["notes"]) as file:
        if not file.parts.exists() and file.missing():
            raise InputError(
                f"{path} has {len(file.finished)} of {len(sizes)} blocks and no {file.parts.name} beside "
                "it: run its command again, it goes on where it stopped."
            )
        file.merge()
        failed = [row for block in sorted(file.failed) for row in file.failed[block]]
        return Merged(path, sum(sizes) - len(failed), failed)
