"""Questions in, result files out: blocks, batches, every lambda, and whatever happens on the way."""

import contextlib
import functools
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from transformers_agci.errors import InputError
from transformers_agci.inference.answer import Answer, Answerer, told_settings
from transformers_agci.inference.batches import Block, Column, image_keys, plan_blocks, plan_columns
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prefix_replay import PrefixReplay, Prompts
from transformers_agci.inference.prepare import Batch, Prepared, prepare, prepared_ahead
from transformers_agci.inference.processes import Team
from transformers_agci.inference.progress import Progress
from transformers_agci.inference.questions import Question
from transformers_agci.inference.raw_pixels import RawPixels, raw_pixels
from transformers_agci.inference.summary import Counts, RunSummary
from transformers_agci.inference.vision_replay import VisionReplay
from transformers_agci.method.hooks import Handle, agci
from transformers_agci.storage import manifest
from transformers_agci.storage.result_file import FailedRow, ResultFile, Shard

BATCH_SIZE = {"cpu": 9, "cuda": 18}  # image lists per forward call; the probe's items have nine images
BATCHES_PER_BLOCK = 4  # what a kill can cost, against how much there is to sort by length

BYTES_CROSS_TO = ("cuda",)  # devices that normalise images themselves where they can


class Plan(NamedTuple):
    """How the questions divide: a function of the input and the batch size only."""

    blocks: list[Block]
    batch_size: int
    block_rows: int


def make_plan(
    questions: Sequence[Question], device_type: str, batch_size: int | None = None, block_rows: int | None = None
) -> Plan:
    """Blocks for these questions; defaults by device."""
    size = batch_size or BATCH_SIZE.get(device_type, BATCH_SIZE["cpu"])
    if size < 1 or (block_rows is not None and block_rows < 1):
        raise InputError(f"A batch needs at least 1 row, but --batch_size is {batch_size}, block_rows {block_rows}.")
    if block_rows is not None:
        return Plan(plan_blocks(questions, block_rows), size, block_rows)
    rows = size * BATCHES_PER_BLOCK
    return Plan(plan_blocks(questions, rows, lists=size), size, rows)


def run_questions(
    loaded: LoadedModel,
    questions: Sequence[Question],
    lambdas: Sequence[float],
    outputs: Sequence[Path],
    *,
    batch_size: int | None = None,
    block_rows: int | None = None,
    workers: int | None = None,
    method: str = "agci",
    scope: str = "image",
    settings: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    bad_rows: Sequence[FailedRow] = (),
    shard: Shard | None = None,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
) -> RunSummary:
    """Ask every question at every lambda and write one result file per lambda (see `results.output_paths`).

    A result row is the question's row with `prediction` and `qs`, and for Yes/No questions `yes_logit`, `no_logit`
    and `margin` = yes - no. Finished blocks are kept and skipped, so the same call goes on after a kill. The vision
    side runs once per image and block for all its questions and lambdas.

    settings  what else must be equal for a file to go on (the data file's hash, the prompt); goes into the manifest
    notes     what the manifest only tells
    bad_rows  rows that could not even become a question; counted with those that fail here
    workers   processes that prepare images; default: none on a CPU, which has the model to run, 4 beside a GPU
    shard     this process's share in a job array; under torchrun the shares follow from RANK and WORLD_SIZE
    strict    stop at the first bad row instead of naming it and going on
    """
    if strict and bad_rows:
        raise InputError(bad_rows[0].error)
    if not questions:
        raise InputError(
            "There is no row to ask"
            + (
                f": all {len(bad_rows)} are bad, for instance {bad_rows[0].error}"
                if bad_rows
                else "; the input is empty."
            )
        )
    if len(outputs) != len(lambdas):
        raise ValueError(f"{len(lambdas)} lambdas need as many outputs, not {len(outputs)}")
    team = Team()
    share = team.share(shard)
    plan = make_plan(questions, loaded.device.type, batch_size, block_rows)
    if workers is None:
        workers = 0 if loaded.device.type == "cpu" else 4
    answerer = Answerer(loaded.model, loaded.processor)
    shared = {
        "model": dict(loaded.identity),
        "method": method,
        "scope": scope,
        "batch_size": plan.batch_size,
        "block_rows": plan.block_rows,
        "generation": told_settings(answerer.settings),
        "stop": _stop_rules(questions),
        **(settings or {}),
    }
    told = {**loaded.notes, **(notes or {})}
    files = [
        ResultFile(
            path,
            [block.size for block in plan.blocks],
            {**shared, "lambda": lam},
            told,
            shard=share,
            joined=team.shard is not None,
            overwrite=overwrite,
        )
        for lam, path in zip(lambdas, outputs, strict=True)
    ]
    raw = raw_pixels(loaded.processor) if loaded.device.type in BYTES_CROSS_TO else None
    run = _Run(loaded, questions, list(lambdas), files, plan, answerer, workers, strict, method, scope, raw)
    try:
        return _together(run, team, shard, bad_rows, progress)
    finally:
        team.close()


def _out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of the CPU, which has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _stop_rules(questions: Sequence[Question]) -> list[str]:
    rules = sorted({question.stop for question in questions})
    return [f"{'Yes/No or ' if rule.yes_no else ''}{rule.max_new_tokens} new tokens" for rule in rules]


def _together(
    run: "_Run", team: Team, shard: Shard | None, bad_rows: Sequence[FailedRow], progress: bool
) -> RunSummary:
    """Open the files, answer, merge: the leader first where there is one."""
    started, start_time = time.monotonic(), manifest.now()
    share = shard or team.shard
    with contextlib.ExitStack() as stack:
        team.open(run.files, stack)
        run.counts.rows_before = sum(file.rows_before for file in run.files) if team.leads else 0
        bar = Progress(run.rows_to_do(share), shown=progress and team.leads)
        finished = False
        try:
            run.answer_blocks(share, bar)
            finished = True
        finally:
            bar.close()
            entry = _run_entry(run, share, start_time, time.monotonic() - started)
            if team.size == 1 or not finished:
                _record(run.files, [entry])
        of_all = team.from_all((entry, run.counts))
        if team.size > 1 and team.leads:
            _record(run.files, [entry for entry, _ in of_all])
        if shard is None and team.leads:
            for file in run.files:
                file.merge()
        failed = {row.row: row for file in run.files for rows in file.failed.values() for row in rows}
        counts = functools.reduce(Counts.plus, (counts for _, counts in of_all))
        counts = replace(counts, failed=[*bad_rows, *(failed[number] for number in sorted(failed))])
        return RunSummary(tuple(file.path for file in run.files), counts, time.monotonic() - started, shard is None)


def _run_entry(run: "_Run", shard: Shard | None, start_time: str, seconds: float) -> dict[str, Any]:
    """One run for the manifest; also one that was interrupted."""
    counts = run.counts
    return {
        "started": start_time,
        "seconds": round(seconds, 3),
        "shard": f"{shard.index}/{shard.count}" if shard else None,
        "answers": counts.rows,
        "rows_per_s": round(counts.rows / seconds, 3) if seconds else None,
        "forwards": counts.forwards,
        "vision_pictures": counts.vision_images,
        "prefill_tokens": counts.prefill_tokens,
        "replayed_tokens": counts.replayed_tokens,
        "pixels_normalised_on": run.loaded.device.type if run.raw else "cpu",
        "disagreements": counts.disagreements,
        "halved_blocks": counts.halved_blocks,
        "failed_rows": len(counts.failed),
        "token_grid": run.token_grid,
        "peak_memory": manifest.peak_memory(),
        **manifest.environment(),
    }


def _record(files: Sequence[ResultFile], entries: Sequence[Mapping[str, Any]]) -> None:
    for file in files:
        for entry in entries:
            file.record(entry)


@dataclass
class _BlockWork:
    """A block in the making: the numbers of the lambdas that lack it, and what is there so far."""

    block: Block
    lacking: list[int]
    answers: dict[int, dict[int, Answer]] = field(default_factory=dict)  # number of lambda -> question number -> answer
    failed: list[FailedRow] = field(default_factory=list)


class _Replays(NamedTuple):
    """What spares work that was done already."""

    vision: VisionReplay
    prefix: PrefixReplay

    def about(self, batch: Batch, prompts: Prompts, keep: bool) -> None:
        self.vision.about(batch.images)
        self.prefix.about(prompts if batch.images else None, keep)

    def forget(self) -> None:
        self.vision.about(None)
        self.prefix.forget()


@dataclass
class _Run:
    """The state of one run in one process."""

    loaded: LoadedModel
    questions: Sequence[Question]
    lambdas: list[float]
    files: list[ResultFile]
    plan: Plan
    answerer: Answerer
    workers: int
    strict: bool
    method: str
    scope: str
    raw: RawPixels | None
    counts: Counts = field(default_factory=Counts)
    token_grid: dict[str, Any] | None = None

    @property
    def processor(self) -> Any:
        return self.loaded.processor if self.raw is None else self.raw.processor

    def to_do(self, shard: Shard | None) -> Iterator[tuple[Block, list[int]]]:
        """The blocks of this process, each with the numbers of the lambdas that lack it."""
        for block in self.plan.blocks:
            if shard is None or shard.owns(block.index):
                lacking = [i for i, file in enumerate(self.files) if block.index not in file.finished]
                if lacking:
                    yield block, lacking

    def rows_to_do(self, shard: Shard | None) -> int:
        return sum(block.size * len(lacking) for block, lacking in self.to_do(shard))

    def answer_blocks(self, shard: Shard | None, bar: Progress) -> None:
        """Answer and write what is left, block by block."""
        todo = list(self.to_do(shard))
        columns = (column for block, _ in todo for column in self._columns(block))
        ahead = prepared_ahead(columns, self.questions, self.processor, self.workers)
        counter = self.loaded.model.register_forward_hook(self._count_forward)
        try:
            with (
                agci(self.loaded.model, 0.0, self.scope, self.method) as handle,
                VisionReplay(self.loaded.model) as vision,
                PrefixReplay(self.loaded.model) as prefix,
                contextlib.closing(ahead),
            ):
                replays = _Replays(vision, prefix)
                for block, lacking in todo:
                    work = _BlockWork(block, lacking)
                    for _ in self._columns(block):
                        prepared = next(ahead)
                        self._note_failed(prepared, work, bar)
                        self._answer_column(prepared, work, handle, replays, bar)
                    self._write(work)
                    self.counts.vision_calls, self.counts.vision_images = vision.calls, vision.images
                    self.counts.prefill_tokens = prefix.prefill_tokens
                    self.counts.replayed_tokens = prefix.replayed_tokens
        finally:
            counter.remove()

    def _columns(self, block: Block) -> list[Column]:
        return plan_columns(self.questions, range(block.start, block.stop), self.plan.batch_size)

    def _count_forward(self, *_: Any) -> None:
        self.counts.forwards += 1

    def _note_failed(self, prepared: Prepared, work: "_BlockWork", bar: Progress) -> None:
        for row in prepared.failed:
            if self.strict:
                raise InputError(row.error)
            bar.say(f"agci: {row.error}")
        work.failed += prepared.failed

    def _answer_column(
        self, prepared: Prepared, work: "_BlockWork", handle: Handle, replays: "_Replays", bar: Progress
    ) -> None:
        """All batches of a column, at every lambda that lacks this block."""
        if self.token_grid is None and prepared.batches and prepared.batches[0].images:
            self.token_grid = self._token_grid(prepared.batches[0])
        inputs = self._on_device(prepared.batches)
        # The first batch's keys and values serve the others. With one mean for a whole batch they depend on its mates.
        serves = len(prepared.batches) > 1 and (
            self.scope == "image" or len({batch.images for batch in prepared.batches}) == 1
        )
        for i in work.lacking:
            handle.lam = self.lambdas[i]
            for number, batch in enumerate(prepared.batches):
                keep = serves and number == 0
                made = self._answer_batch(batch, inputs[number], work.block, replays, keep)
                work.answers.setdefault(i, {}).update(made)
                bar.add(len(made))
            replays.prefix.forget()  # another lambda, other keys and values

    def _answer_batch(
        self, batch: Batch, inputs: dict[str, torch.Tensor], block: Block, replays: "_Replays", keep: bool = False
    ) -> dict[int, Answer]:
        """Answers by question number; a batch that does not fit into memory is halved."""
        stop = self.questions[batch.numbers[0]].stop
        try:
            replays.about(batch, self._prompts(batch), keep)
            made = self.answerer.answer(inputs, stop)
            self.counts.batches += 1
            return dict(zip(batch.numbers, made, strict=True))
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if len(batch.numbers) == 1:
                raise InputError(
                    f"{self.questions[batch.numbers[0]].where}: memory does not suffice even for this row "
                    f"alone ({str(error).splitlines()[0]}); try --dtype bfloat16, --max_pixels or "
                    "--load_in_4bit."
                ) from error
        # Outside the except clause: the traceback would keep the failed attempt's tensors alive.
        replays.forget()
        if block.index not in self.counts.halved_blocks:
            self.counts.halved_blocks.append(block.index)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
        middle = (len(batch.numbers) + 1) // 2
        answers: dict[int, Answer] = {}
        for half in (batch.numbers[:middle], batch.numbers[middle:]):
            for part in prepare(Column((half,)), self.questions, self.processor).batches:
                answers |= self._answer_batch(part, self._on_device([part])[0], block, replays)
        return answers

    def _prompts(self, batch: Batch) -> Prompts:
        keys = tuple(image_keys(self.questions[number].images) for number in batch.numbers)
        return Prompts(keys, batch.text["input_ids"], batch.text["attention_mask"])

    def _on_device(self, batches: Sequence[Batch]) -> list[dict[str, torch.Tensor]]:
        """The inputs of each batch where the model is; pixels that batches share cross once."""
        crossed: dict[int, dict[str, torch.Tensor]] = {}
        for batch in batches:
            if id(batch.pixels) not in crossed:
                crossed[id(batch.pixels)] = self._moved(batch.pixels)
        return [{**self._moved(batch.text), **crossed[id(batch.pixels)]} for batch in batches]

    def _moved(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        moved = {name: value.to(self.loaded.device) for name, value in tensors.items()}
        if self.raw is not None:
            moved = {
                name: self.raw.normalise(value) if value.dtype == torch.uint8 else value
                for name, value in moved.items()
            }
        dtype = self.loaded.model.dtype
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}

    def _write(self, work: "_BlockWork") -> None:
        failed = sorted(work.failed)
        left_out = {row.row for row in failed}
        numbers = [number for number in range(work.block.start, work.block.stop) if number not in left_out]
        for i in work.lacking:
            of_lambda = work.answers.get(i, {})
            self.files[i].write(work.block.index, [self._result_row(n, of_lambda[n]) for n in numbers], failed)
            self.counts.rows += len(numbers)
        self.counts.failed += failed

    def _result_row(self, number: int, answer: Answer) -> dict[str, Any]:
        question = self.questions[number]
        self.counts.disagreements += answer.logits_disagree
        asked = question.text if question.shown is None else question.shown
        return {
            **question.row,
            "prediction": answer.text,
            "qs": asked,
            **{name: value for name, value in answer.fields.items() if name != "prediction"},
        }

    def _token_grid(self, batch: Batch) -> dict[str, Any]:
        """The image tokens of the first prompt of the run."""
        image_token = self.loaded.model.config.image_token_id
        row = batch.text["input_ids"][0]
        grid = batch.pixels.get("image_grid_thw")
        asked = self.questions[batch.numbers[0]]
        return {
            "row": asked.where,
            "pictures": len(asked.images),
            "image_tokens": int((row == image_token).sum()),
            **({} if grid is None else {"patches_t_h_w": grid[0].tolist()}),
        }
