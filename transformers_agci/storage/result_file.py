"""Results on disk: plain JSON lines in input order that survive being killed, resumed and sharded.

Beside a result file `A.jsonl` there may stand

    A.manifest.json   the settings it was made with (manifest.py)
    A.bad.jsonl       the rows that could not be asked, each with its reason; only if there are any
    A.lock            while a process writes
    A.parts/          the blocks of a sharded run, until they are merged

The unit is the block. A run of one process appends blocks to `A.jsonl` in order. Several processes write part files,
one line per block, `{"block": 3, "rows": [...], "failed": [...]}`, which are merged in block order: the same bytes.
What a kill leaves half-written is cut off and done again.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from transformers_agci.errors import InputError
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage import manifest


@dataclass(frozen=True)
class Shard:
    """This process is number `index` (from 0) of `count`; it does the blocks whose number % count is `index`."""

    index: int
    count: int

    def owns(self, block: int) -> bool:
        return block % self.count == self.index


class FailedRow(NamedTuple):
    """A row without an answer: its number in the input, file:line, and the reason."""

    row: int
    where: str
    error: str


def parse_shard(text: str) -> Shard:
    """Read "0/4" ... "3/4".

    >>> parse_shard("1/4")
    Shard(index=1, count=4)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard must be i/n with 0 <= i < n (the first of four is 0/4), but it is {text!r}.")
    return Shard(int(index), int(count))


def stem(path: Path) -> Path:
    """The path without a .jsonl or .json ending: what its companions are named after."""
    return path.with_suffix("") if path.suffix in (".jsonl", ".json") else path


def beside(path: Path, ending: str) -> Path:
    """A companion of a result file: beside("A.jsonl", ".manifest.json") is A.manifest.json."""
    return path.with_name(stem(path).name + ending)


def output_paths(answer_file: Path, lambdas: Sequence[float], method: str = "agci") -> list[Path]:
    """One lambda writes the file that was named; several write A.lam0.jsonl, A.lam0.5.jsonl, ...

    A control's results are never taken for AGCI's: its name stands in the file's.

    >>> [path.name for path in output_paths(Path("A.json"), [0, 0.5])]
    ['A.lam0.jsonl', 'A.lam0.5.jsonl']
    >>> [path.name for path in output_paths(Path("A.json"), [0.5], "random")]
    ['A.random.jsonl']
    """
    if method != "agci":
        answer_file = beside(answer_file, f".{method}.jsonl")
    if len(set(lambdas)) != len(lambdas):
        raise InputError(f"Each lambda is run once, but the list is {' '.join(map(lambda_text, lambdas))}.")
    if len(lambdas) == 1:
        return [answer_file]
    return [beside(answer_file, f".lam{lambda_text(lam)}.jsonl") for lam in lambdas]


def dump_row(row: Mapping[str, Any]) -> bytes:
    """One result line. ASCII, so that any caption (even half a surrogate pair) can be written and read back."""
    return json.dumps(row).encode("ascii") + b"\n"


class ResultFile:
    """The results of one experiment at one lambda; use it as a context manager.

    `block_sizes` holds the number of rows of each block. Opening takes the lock, compares the settings and cuts off a
    torn block; then `finished` holds the blocks that need no work. With a `shard`, blocks go to part files;
    `joined` says that the shards are the processes of one torchrun.

    Raises InputError if another process writes the file, if it was made with other settings (the difference is
    named), if it is not one of ours, or if it cannot be written; `overwrite` starts anew.
    """

    BRIEFLY = 10.0  # seconds to wait for shards that look at the whole file's lock

    def __init__(
        self,
        path: Path,
        block_sizes: Sequence[int],
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        *,
        shard: Shard | None = None,
        joined: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.block_sizes = list(block_sizes)
        self.settings = dict(settings)
        self.notes = dict(notes or {})
        self.shard = shard
        # Processes of one torchrun open together: the first of them locks and checks for all, and merges at the end.
        self.leader = not joined or shard is None or shard.index == 0
        self._alone = shard is not None and not joined  # a shard that knows nothing of the others
        self.overwrite = overwrite
        self.finished: set[int] = set()
        self.failed: dict[int, list[FailedRow]] = {}
        self.rows_before = 0  # rows of this file that were already there
        self._locks: list[FileLock] = []
        self._out: Any = None

    # --- opening and closing ---

    def __enter__(self) -> "ResultFile":
        try:
            self._open()
        except OSError as error:
            self._release()
            raise InputError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        except BaseException:
            self._release()
            raise
        return self

    def _open(self) -> None:
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; name a file for the answers.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        if self.overwrite and self.leader:
            if self._alone:
                raise InputError(
                    "--overwrite with --shard would delete the other shards' work: "
                    f"delete {self.path} and {self.parts} by hand, then start the shards without it."
                )
            self.delete()
        with self._briefly_whole():
            if self.leader:
                manifest.open_for(self.path, self.settings, self.notes, self.block_sizes)
            self._scan()
        if self.shard is None and not self.parts.exists():
            self._out = self.path.open("ab")
        else:
            self.shard = self.shard or Shard(0, 1)
            self.parts.mkdir(exist_ok=True)
            part = self.parts / f"{self.shard.index}-of-{self.shard.count}.jsonl"
            if part.exists():
                _cut(part, _whole_lines(part))
            self._out = part.open("ab")

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None
        self._release()

    @property
    def parts(self) -> Path:
        return beside(self.path, ".parts")

    @property
    def bad(self) -> Path:
        return beside(self.path, ".bad.jsonl")

    def delete(self) -> None:
        """Remove the results and everything that stands beside them."""
        for file in (self.path, self.bad, beside(self.path, ".manifest.json")):
            file.unlink(missing_ok=True)
        if self.parts.exists():
            shutil.rmtree(self.parts)

    # --- locks ---

    def _lock(self) -> None:
        """The whole file for a run that merges, a part of it for a shard that does not; never both at once."""
        if not self.leader:
            return
        whole = FileLock(beside(self.path, ".lock"))
        if not self._alone:
            self._take(whole)
            for part_lock in sorted(self.parts.glob("*.lock")):
                probe = FileLock(part_lock)
                self._take(probe)
                self._locks.remove(probe)
                _drop(probe)
            return
        assert self.shard is not None
        self.parts.mkdir(exist_ok=True)
        self._take(FileLock(self.parts / f"{self.shard.index}-of-{self.shard.count}.lock"))
        with self._briefly_whole():
            pass  # nobody holds it for longer

    @contextlib.contextmanager
    def _briefly_whole(self) -> Iterator[None]:
        """For a shard: the lock of the whole file, which the other shards take for moments, too."""
        if not self._alone:
            yield
            return
        whole = FileLock(beside(self.path, ".lock"))
        self._take(whole, seconds=self.BRIEFLY)
        try:
            yield
        finally:
            self._locks.remove(whole)
            _drop(whole)

    def _take(self, lock: FileLock, seconds: float = 0.0) -> None:
        try:
            lock.acquire(timeout=seconds, poll_interval=0.02)
        except Timeout:
            raise InputError(
                f"{self.path} is being written by another process (it holds {lock.lock_file}); "
                "wait for it, or name another answer file."
            ) from None
        self._locks.append(lock)

    def _release(self) -> None:
        while self._locks:
            _drop(self._locks.pop())
        with contextlib.suppress(OSError):
            self.parts.rmdir()  # only if nothing is left in it

    # --- what is finished ---

    def _scan(self) -> None:
        """Find the finished blocks and cut off what is torn."""
        self.failed = failed = _read_failed(self.bad)
        lengths = _line_ends(self.path)
        prefix = self._blocks_in(lengths)
        self.finished = set(range(prefix))
        lines = sum(size - len(failed.get(block, ())) for block, size in enumerate(self.block_sizes[:prefix]))
        self.rows_before = lines
        if len(self.finished) == len(self.block_sizes) and lines < len(lengths):
            raise InputError(
                f"{self.path} holds {len(lengths)} rows, more than the {lines} of this run; give --overwrite to start "
                "anew, or name another answer file."
            )
        self.failed = {block: rows for block, rows in failed.items() if block in self.finished}
        if self.leader and not self._alone:
            if self.path.exists():
                _cut(self.path, lengths[lines - 1] if lines else 0)
            if self.failed != failed:
                self._write_failed()
        for line in self._part_lines():
            if line.block < len(self.block_sizes) and line.block not in self.finished:
                self.finished.add(line.block)
                self.rows_before += line.rows
                if line.failed:
                    self.failed[line.block] = line.failed

    def _blocks_in(self, line_ends: Sequence[int]) -> int:
        """How many blocks, from the first on, stand whole in the result file."""
        lines = 0
        for block, size in enumerate(self.block_sizes):
            lines += size - len(self.failed.get(block, ()))
            if lines > len(line_ends):
                return block
        return len(self.block_sizes)

    def _part_lines(self) -> Iterator["_PartLine"]:
        for part in sorted(self.parts.glob("*.jsonl")):
            start = 0
            for end in _line_ends(part):
                with part.open("rb") as file:
                    file.seek(start)
                    line = json.loads(file.read(end - start))
                failed = [FailedRow(**row) for row in line["failed"]]
                yield _PartLine(line["block"], len(line["rows"]), failed, part, start, end)
                start = end

    # --- writing ---

    def write(self, block: int, rows: Sequence[Mapping[str, Any]], failed: Sequence[FailedRow] = ()) -> None:
        """Append a finished block and force it to disk; `rows` in input order, without the failed ones."""
        if len(rows) + len(failed) != self.block_sizes[block]:
            raise AssertionError(f"block {block} has {self.block_sizes[block]} rows, not {len(rows)} + {len(failed)}")
        if failed:
            self.failed[block] = list(failed)
        if self.shard is None:
            if failed:  # first, so that a block's rows never stand without the reason why some are missing
                self._write_failed()
            data = b"".join(map(dump_row, rows))
        else:
            data = dump_row({"block": block, "rows": list(rows), "failed": [row._asdict() for row in failed]})
        self._out.write(data)
        self._out.flush()
        os.fsync(self._out.fileno())
        self.finished.add(block)

    def _write_failed(self) -> None:
        rows = [{"block": block, **row._asdict()} for block in sorted(self.failed) for row in self.failed[block]]
        if rows:
            manifest.replace_file(self.bad, b"".join(map(dump_row, rows)))
        else:
            self.bad.unlink(missing_ok=True)

    # --- merging ---

    def merge(self) -> None:
        """Join the part files into the result file, in block order.

        Raises InputError if a block is missing: a shard did not finish, or wrote to a disk that this machine lacks.
        """
        if self._out is not None:
            self._out.close()
            self._out = None
        if not self.parts.exists():
            return
        parts = {line.block: line for line in self._part_lines()}
        whole = _line_ends(self.path)
        prefix = self._blocks_in(whole)
        self.finished = {*range(prefix), *(block for block in parts if block < len(self.block_sizes))}
        if missing := self.missing():
            raise InputError(
                f"{self.parts} lacks {len(missing)} of {len(self.block_sizes)} blocks (the first is "
                f"{missing[0]}): let every shard i/n finish, block b belongs to shard b % n, then merge."
            )
        self.failed |= {line.block: line.failed for line in parts.values() if line.failed and line.block >= prefix}
        temporary = beside(self.path, ".merging")
        with temporary.open("wb") as out:
            lines = sum(size - len(self.failed.get(block, ())) for block, size in enumerate(self.block_sizes[:prefix]))
            if lines:
                with self.path.open("rb") as file:
                    out.write(file.read(whole[lines - 1]))
            for block in range(prefix, len(self.block_sizes)):
                with parts[block].part.open("rb") as file:
                    file.seek(parts[block].start)
                    for row in json.loads(file.read(parts[block].end - parts[block].start))["rows"]:
                        out.write(dump_row(row))
            out.flush()
            os.fsync(out.fileno())
        self._write_failed()
        temporary.replace(self.path)
        shutil.rmtree(self.parts)

    def record(self, run: Mapping[str, Any]) -> None:
        """Add what a run measured to the manifest."""
        with self._briefly_whole():
            manifest.add_run(self.path, run)

    def missing(self) -> list[int]:
        """The blocks that are not finished."""
        return [block for block in range(len(self.block_sizes)) if block not in self.finished]


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


class _PartLine(NamedTuple):
    block: int
    rows: int
    failed: list[FailedRow]
    part: Path
    start: int  # bytes
    end: int


def _line_ends(path: Path) -> list[int]:
    """The byte offset behind each whole line of a file of JSON objects, up to the first that is not one."""
    ends: list[int] = []
    if not path.exists():
        return ends
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not (line.startswith(b"{") and line.endswith(b"}\n")):
                break
            offset += len(line)
            ends.append(offset)
    return ends


def _whole_lines(path: Path) -> int:
    ends = _line_ends(path)
    return ends[-1] if ends else 0


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())


def _read_failed(path: Path) -> dict[int, list[FailedRow]]:
    failed: dict[int, list[FailedRow]] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            failed.setdefault(row.pop("block"), []).append(FailedRow(**row))
    return failed


def _drop(lock: FileLock) -> None:
    """Release a lock and take its file away, which would only raise questions."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
