"""The one runner: blocks of input rows, work that makes result rows of them, result files that survive a kill.

An experiment brings a `Job`: its rows cut into blocks, its result files, and a work function. The runner does the
rest: which blocks are this process's and which are done already, the locks, the progress, writing each block through
to the disk, naming rows that cannot be done, the manifest, merging, and the summary.

    def work(tasks, reporter):
        for task in tasks:                                  # the blocks that are left, in order
            result = [{**row, "prediction": answer(row)} for row in blocks[task.block]]
            reporter.advance(len(result))                   # before the yield: what follows it runs a block later
            yield BlockResult([result])                     # one list of result rows per output of the task

    rows = [row for block in blocks for row in block]
    job = Job(work, rows, [len(block) for block in blocks], [Output(Path("A.jsonl"), {"experiment": "mine"})])
    summary = run(job, RunOptions(strict=True))

A block is a function of the input alone and never of how many processes there are: with 5 blocks, shard 1 of 2 does
blocks 1 and 3, and one process that goes on later finds them done.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.inference.process_group import ProcessGroup
from transformers_agci.inference.progress import Counts, Progress, RunSummary
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage import manifest
from transformers_agci.storage.interruption import interruption_remembered
from transformers_agci.storage.result_file import ResultFile
from transformers_agci.storage.result_lines import FailedRow
from transformers_agci.storage.result_names import Shard, sibling_path

Row = Mapping[str, Any]

# Of the CPU, of libraries that allocate for themselves, of a transfer.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


@dataclass(frozen=True)
class RunOptions:
    """How a run goes, whatever its work is: see the commands' options of the same names."""

    shard: Shard | None = None  # this process's share in a job array; under torchrun the shares follow from the rank
    overwrite: bool = False
    strict: bool = False  # stop at the first bad row instead of naming it and going on
    progress: bool = True
    advanced: Callable[[int], None] | None = None  # is called with each number of result rows that are made


class Output(NamedTuple):
    """A result file, and what must be equal for it to go on; another value is an InputError that names it."""

    path: Path
    settings: Mapping[str, Any]


def output_paths(answer_file: Path, lambdas: Sequence[float], method: str = "agci") -> list[Path]:
    """One lambda writes the file that was named; several write A.lam0.jsonl, A.lam0.5.jsonl, ...

    A control's results are never taken for AGCI's: its name stands in the file's.

    >>> [path.name for path in output_paths(Path("A.json"), [0, 0.5])]
    ['A.lam0.jsonl', 'A.lam0.5.jsonl']
    >>> [path.name for path in output_paths(Path("A.json"), [0.5], "random")]
    ['A.random.jsonl']
    """
    if method != "agci":
        if not method.replace("-", "").replace("_", "").isalnum():  # it could not stand in a file's name
            from transformers_agci.method.arguments import is_rival

            is_rival(method)
        answer_file = sibling_path(answer_file, f".{method}.jsonl")
    if len(set(lambdas)) != len(lambdas):
        raise InputError(f"Each lambda is run once, but the list is {' '.join(map(lambda_text, lambdas))}.")
    if len(lambdas) == 1:
        return [answer_file]
    return [sibling_path(answer_file, f".lam{lambda_text(lam)}.jsonl") for lam in lambdas]


class Task(NamedTuple):
    """A block to do, and the numbers of the outputs that lack it."""

    block: int
    outputs: tuple[int, ...]


class BlockResult(NamedTuple):
    """A finished block: for each of the task's outputs its result rows in input order, and the rows without any."""

    rows: Sequence[Sequence[Row]]
    failed: Sequence[FailedRow] = ()


class Reporter:
    """What a work function tells while it works."""

    def __init__(
        self,
        progress: Progress,
        strict: bool,
        check: Callable[[], None],
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        self._progress = progress
        self._advanced = advanced
        self._strict = strict
        self._check = check
        self._named: set[int] = set()

    def advance(self, rows: int) -> None:
        """So many result rows more are made. Raises KeyboardInterrupt where a Ctrl-C was lost on the way."""
        self._progress.add(rows)
        if self._advanced is not None:
            self._advanced(rows)
        self._check()

    def skip(self, row: FailedRow) -> None:
        """Name a row that cannot be done, once; with `strict` its reason is raised as an InputError.

        The runner does this for all rows of a BlockResult: a work calls it to stop, or to say so, earlier.
        """
        if self._strict:
            raise InputError(row.error)
        if row.row not in self._named:
            self._named.add(row.row)
            self._progress.say(f"agci: {row.error}")


Results = Generator[BlockResult, None, None]
Work = Callable[[Sequence[Task], Reporter], Results]


@dataclass(frozen=True)
class Job:
    """What an experiment wants done.

    work         yields one BlockResult for each task, in order
    rows         the input rows; every result row repeats its own, which is how a file that goes on is recognised
    replaced     fields that a result row has of its own, also where the input row has them
    block_sizes  the numbers of consecutive rows that make the blocks
    outputs      one result file, or one per lambda
    notes        what the manifest only records
    bad_rows     rows that could not even be read; counted with those that fail
    counts       the work's counts, which it adds to
    details      further entries for the manifest's run, which the work may fill
    unit         what a result row is called in the summary
    """

    work: Work
    rows: Sequence[Row]
    block_sizes: Sequence[int]
    outputs: Sequence[Output]
    notes: Mapping[str, Any] = field(default_factory=dict)
    bad_rows: Sequence[FailedRow] = ()
    counts: Counts = field(default_factory=Counts)
    details: dict[str, Any] = field(default_factory=dict)
    unit: str = "row"
    replaced: Collection[str] = ()

    def repeated_rows(self) -> Sequence[Row]:
        """What the result rows repeat of the input rows."""
        own = set(self.replaced)
        return [
            row if own.isdisjoint(row) else {key: value for key, value in row.items() if key not in own}
            for row in self.rows
        ]


def run(job: Job, options: RunOptions | None = None) -> RunSummary:
    """Do the blocks that the outputs lack, in order, each forced to disk when it is finished.

    Under torchrun every process does its share and the main one merges; a `shard` does its share and leaves merging
    to `agci merge-shards`. The same call goes on after a kill.

    Raises InputError where there is no row at all, where an output has other settings, is being written by another
    process or cannot be written, where memory runs out, and with `strict` at the first bad row.
    """
    options = options or RunOptions()
    if options.strict and job.bad_rows:
        raise InputError(job.bad_rows[0].error)
    if not job.block_sizes:
        bad = job.bad_rows
        why = f": all {len(bad)} are bad, for instance {bad[0].error}" if bad else "; the input is empty."
        raise InputError(f"There is no row to ask{why}")
    with ProcessGroup() as group:
        return _Run(job, options, group).finish()


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU ran out, or that of the CPU; only PyTorch's allocator for GPUs has a class for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


OF_A_RUN = ("kernels", "kernels_off_because")  # notes that may differ from run to run of one file: in the run's entry


class _Share(NamedTuple):
    """What one process of the run did."""

    counts: Counts
    failed: dict[int, FailedRow]  # by row number
    entry: dict[str, Any]  # for the manifest


class _Run:
    """One run in one process."""

    def __init__(self, job: Job, options: RunOptions, group: ProcessGroup) -> None:
        self.job, self.options, self.group = job, options, group
        self.share = group.share(options.shard)
        rows = job.repeated_rows()
        notes = {name: value for name, value in job.notes.items() if name not in OF_A_RUN}
        self.files = [
            ResultFile(
                output.path,
                job.block_sizes,
                output.settings,
                notes,
                rows=rows,
                shard=self.share,
                joined=group.shard is not None,
                overwrite=options.overwrite,
            )
            for output in job.outputs
        ]
        self.started, self.start_time = time.monotonic(), manifest.now()

    def finish(self) -> RunSummary:
        """Open the files, work, merge: the main process first where there are several."""
        with contextlib.ExitStack() as stack:
            self._open(stack)
            for file in self.files:
                self.job.counts.earlier(file.earlier_runs())
            self.job.counts.already_done = sum(file.rows_of(self._owned(file.finished)) for file in self.files)
            try:
                self._work()
            except BaseException:
                with contextlib.suppress(OSError, InputError):  # the reason that is on its way matters more
                    self._record([self._mine()])
                raise
            shares = self.group.gather(self._mine())
            if self.group.is_main:
                self._record(shares)
                if self.options.shard is None:
                    for file in self.files:
                        file.merge()
        return self._summary(shares)

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Enter all files, the main process's first: what it refuses, all refuse."""
        refusal = None
        if self.group.is_main:
            try:
                for file in self.files:
                    stack.enter_context(file)
            except InputError as error:
                refusal = error
        refused = self.group.from_main(refusal is not None)
        if refusal is not None:
            raise refusal
        if refused:
            raise SystemExit(2)  # the main process says why; once is enough
        if not self.group.is_main:
            for file in self.files:
                stack.enter_context(file)

    def _owned(self, blocks: set[int]) -> list[int]:
        return [block for block in sorted(blocks) if self.share is None or self.share.owns(block)]

    def _tasks(self) -> list[Task]:
        every = self._owned(set(range(len(self.job.block_sizes))))
        lacking = (
            Task(block, tuple(i for i, file in enumerate(self.files) if block not in file.finished)) for block in every
        )
        return [task for task in lacking if task.outputs]

    def _work(self) -> None:
        """Do and write what is left, block by block."""
        tasks = self._tasks()
        total = sum(self.job.block_sizes[task.block] * len(task.outputs) for task in tasks)
        progress = Progress(total, self.options.progress and self.group.is_main)
        try:
            with interruption_remembered() as check:
                reporter = Reporter(progress, self.options.strict, check, self.options.advanced)
                with contextlib.closing(self.job.work(tasks, reporter)) as results:
                    for task, result in zip(tasks, results, strict=True):
                        self._write(task, result, reporter)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise InputError(
                f"Memory ran out ({str(error).splitlines()[0]}); give a smaller `batch_size` or "
                "`max_pixels`, or `dtype` bfloat16. Finished blocks are kept."
            ) from error
        finally:
            progress.close()

    def _write(self, task: Task, result: BlockResult, reporter: Reporter) -> None:
        for row in result.failed:
            reporter.skip(row)
        for i, rows in zip(task.outputs, result.rows, strict=True):
            self.files[i].write(task.block, rows, result.failed)
            self.job.counts.rows += len(rows)

    def _mine(self) -> _Share:
        """What this process did, also where it was interrupted."""
        job, seconds = self.job, time.monotonic() - self.started
        failed = {row.row: row for file in self.files for row in file.failed_rows(self._owned(file.finished))}
        entry = {
            "started": self.start_time,
            "seconds": round(seconds, 3),
            "shard": f"{self.share.index}/{self.share.count}" if self.share else None,
            **job.counts.record(seconds),
            "failed_rows": len(job.bad_rows) + len(failed),
            **{name: job.notes[name] for name in OF_A_RUN if name in job.notes},
            **job.details,
            "peak_memory": manifest.peak_memory(),
            **manifest.environment(),
        }
        return _Share(job.counts, failed, entry)

    def _record(self, shares: Sequence[_Share]) -> None:
        for file in self.files:
            for share in shares:
                file.record(share.entry)

    def _summary(self, shares: Sequence[_Share]) -> RunSummary:
        job = self.job
        counts = functools.reduce(type(job.counts).plus, (share.counts for share in shares))
        failed = {number: row for share in shares for number, row in share.failed.items()}
        counts = replace(counts, failed=[*job.bad_rows, *(failed[number] for number in sorted(failed))])
        return RunSummary(
            tuple(output.path for output in job.outputs),
            counts,
            time.monotonic() - self.started,
            job.unit,
            self.options.shard,
            len(job.block_sizes),
        )
