"""Questions in, result files out: blocks, batches, every lambda, and whatever happens on the way."""

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from transformers_agci.errors import InputError
from transformers_agci.inference import manifest
from transformers_agci.inference.answer import Answer, Answerer, told_settings
from transformers_agci.inference.batches import Block, Column, plan_blocks, plan_columns
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import Batch, Prepared, prepare, prepared_ahead
from transformers_agci.inference.processes import Team
from transformers_agci.inference.progress import Progress
from transformers_agci.inference.questions import ANSWER_WORDS, Question
from transformers_agci.inference.results import FailedRow, ResultFile, Shard
from transformers_agci.inference.vision_replay import VisionReplay

BATCH_SIZE = {"cpu": 9, "cuda": 18}  # picture lists per forward call; the probe's items have nine pictures
BATCHES_PER_BLOCK = 4  # what a kill can cost, against how much there is to sort by length


@dataclass
class Counts:
    """What a run did; the tests hold these, never seconds."""

    rows: int = 0  # answers written by this run
    rows_before: int = 0  # answers that were already there
    batches: int = 0
    forwards: int = 0  # forward calls of the whole model
    vision_calls: int = 0
    vision_pictures: int = 0  # pictures that the vision side encoded
    disagreements: int = 0  # Yes/No rows whose raw logits order the words against the answer
    unreadable: int = 0  # Yes/No rows whose answer begins with neither word
    halved_blocks: list[int] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)

    def plus(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class RunSummary:
    """How a run ended. `complete` is False for a shard: `agci merge-shards` joins the parts."""

    outputs: tuple[Path, ...]
    counts: Counts
    seconds: float
    complete: bool

    @property
    def exit_code(self) -> int:
        return 1 if self.counts.failed else 0

    def lines(self) -> list[str]:
        """What a command prints at the end."""
        counts = self.counts
        rate = counts.rows / self.seconds if self.seconds else 0.0
        said = [f"{counts.rows} answers in {self.seconds:.1f} s ({rate:.1f} rows/s)"
                + (f", {counts.rows_before} were there before" if counts.rows_before else "")
                + f"; vision ran on {counts.vision_pictures} pictures, {counts.forwards} forward calls."]
        if counts.unreadable:
            said.append(f"{counts.unreadable} answers begin with neither Yes nor No.")
        if counts.disagreements:
            said.append(f"{counts.disagreements} answers go against the order of their raw Yes and No logits.")
        if counts.halved_blocks:
            said.append(f"Memory ran out in {len(counts.halved_blocks)} blocks, which were halved: "
                        f"{', '.join(map(str, counts.halved_blocks[:10]))}.")
        if counts.failed:
            said.append(f"{len(counts.failed)} rows could not be asked:")
            said += [f"  {row.error}" for row in counts.failed[:20]]
            said += [f"  ... and {len(counts.failed) - 20} more"] if len(counts.failed) > 20 else []
        if self.complete:
            said += [f"Written: {path}" for path in self.outputs]
        else:
            said += [f"This shard is done; when all are: agci merge-shards {path}" for path in self.outputs]
        return said


class Plan(NamedTuple):
    """How the questions divide: a function of the input and the batch size only."""

    blocks: list[Block]
    batch_size: int
    block_rows: int


def make_plan(questions: Sequence[Question], device_type: str, batch_size: int | None = None,
              block_rows: int | None = None) -> Plan:
    """Blocks for these questions; defaults by device."""
    size = batch_size or BATCH_SIZE.get(device_type, BATCH_SIZE["cpu"])
    if size < 1 or (block_rows is not None and block_rows < 1):
        raise InputError(f"A batch needs at least 1 row, but --batch_size is {batch_size}, block_rows {block_rows}.")
    rows = block_rows or size * BATCHES_PER_BLOCK
    return Plan(plan_blocks(questions, rows), size, rows)


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
    side runs once per picture and block for all its questions and lambdas.

    settings  what else must be equal for a file to go on (the data file's hash, the prompt); goes into the manifest
    notes     what the manifest only tells
    bad_rows  rows that could not even become a question; counted with those that fail here
    workers   processes that prepare pictures; default: none on a CPU, which has the model to run, 4 beside a GPU
    shard     this process's share in a job array; under torchrun the shares follow from RANK and WORLD_SIZE
    strict    stop at the first bad row instead of naming it and going on
    """
    if strict and bad_rows:
        raise InputError(bad_rows[0].error)
    if not questions:
        raise InputError("There is no row to ask" + (f": all {len(bad_rows)} are bad, for instance {bad_rows[0].error}"
                                                     if bad_rows else "; the input is empty."))
    if len(outputs) != len(lambdas):
        raise ValueError(f"{len(lambdas)} lambdas need as many outputs, not {len(outputs)}")
    team = Team()
    if shard is not None and team.size > 1:
        raise InputError("--shard is for processes that do not know each other; under torchrun the blocks are shared out "
                         "already. Leave one of the two away.")
    plan = make_plan(questions, loaded.device.type, batch_size, block_rows)
    if workers is None:
        workers = 0 if loaded.device.type == "cpu" else 4
    answerer = Answerer(loaded.model, loaded.processor)
    shared = {
        "model": dict(loaded.identity), "method": method, "scope": scope, "batch_size": plan.batch_size,
        "block_rows": plan.block_rows, "generation": told_settings(answerer.settings),
        "stop": _stop_rules(questions), **(settings or {}),
    }
    told = {**loaded.notes, **(notes or {})}
    files = [ResultFile(path, [block.size for block in plan.blocks], {**shared, "lambda": lam}, told,
                        shard=shard or team.shard, joined=team.shard is not None, overwrite=overwrite)
             for lam, path in zip(lambdas, outputs, strict=True)]
    run = _Run(loaded, questions, list(lambdas), files, plan, answerer, workers, strict, method, scope)
    try:
        return _together(run, team, shard, bad_rows, progress)
    finally:
        team.close()


def _stop_rules(questions: Sequence[Question]) -> list[str]:
    rules = sorted({question.stop for question in questions})
    return [f"{'Yes/No or ' if rule.yes_no else ''}{rule.max_new_tokens} new tokens" for rule in rules]


def _together(run: "_Run", team: Team, shard: Shard | None, bad_rows: Sequence[FailedRow],
              progress: bool) -> RunSummary:
    """Open the files, answer, merge: the leader first where there is one."""
    started, start_time = time.monotonic(), manifest.now()
    with contextlib.ExitStack() as stack:
        refusal = None
        if team.leads:
            try:
                for file in run.files:
                    stack.enter_context(file)
            except InputError as error:
                refusal = str(error)
        refusal = team.from_leader(refusal)
        if refusal is not None:
            if team.leads:
                raise InputError(refusal)
            raise SystemExit(2)  # said once is enough
        if not team.leads:
            for file in run.files:
                stack.enter_context(file)
        run.counts.rows_before = sum(file.rows_before for file in run.files) if team.leads else 0
        bar = Progress(run.rows_to_do(shard or team.shard), shown=progress and team.leads)
        try:
            run.answer_blocks(shard or team.shard, bar)
        finally:
            bar.close()
            seconds = time.monotonic() - started
            entry = _run_entry(run, shard or team.shard, start_time, seconds)
            if team.size == 1:
                _record(run, [entry])
        entries = team.from_all((entry, run.counts))
        counts = entries[0][1]
        for _, others in entries[1:]:
            counts = counts.plus(others)
        if team.leads and team.size > 1:
            _record(run, [entry for entry, _ in entries])
        known = {row.row: row for file in run.files for rows in file.failed.values() for row in rows}
        if shard is None and team.leads:
            for file in run.files:
                file.merge()
                known |= {row.row: row for rows in file.failed.values() for row in rows}
        counts = replace(counts, failed=[*bad_rows, *(known[number] for number in sorted(known))])
        return RunSummary(tuple(file.path for file in run.files), counts, time.monotonic() - started, shard is None)


def _run_entry(run: "_Run", shard: Shard | None, start_time: str, seconds: float) -> dict[str, Any]:
    """One run for the manifest; also one that was interrupted."""
    counts = run.counts
    return {
        "started": start_time, "seconds": round(seconds, 3), "shard": f"{shard.index}/{shard.count}" if shard else None,
        "answers": counts.rows, "rows_per_s": round(counts.rows / seconds, 3) if seconds else None,
        "forwards": counts.forwards, "vision_pictures": counts.vision_pictures,
        "disagreements": counts.disagreements, "unreadable": counts.unreadable, "halved_blocks": counts.halved_blocks,
        "failed_rows": len(counts.failed), "token_grid": run.token_grid, "peak_memory": manifest.peak_memory(),
        **manifest.environment(),
    }


def _record(run: "_Run", entries: Sequence[Mapping[str, Any]]) -> None:
    for file in run.files:
        for entry in entries:
            manifest.add_run(file.path, entry)


class _Run:
    """The state of one run in one process."""

    def __init__(self, loaded: LoadedModel, questions: Sequence[Question], lambdas: list[float],
                 files: list[ResultFile], plan: Plan, answerer: Answerer, workers: int, strict: bool,
                 method: str, scope: str) -> None:
        self.loaded = loaded
        self.questions = questions
        self.lambdas = lambdas
        self.files = files
        self.plan = plan
        self.answerer = answerer
        self.workers = workers
        self.strict = strict
        self.method = method
        self.scope = scope
        self.counts = Counts()
        self.token_grid: dict[str, Any] | None = None

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
        from transformers_agci.attach import attach

        todo = [(block, lacking, self._columns(block)) for block, lacking in self.to_do(shard)]
        columns = (column for _, _, of_block in todo for column in of_block)
        ahead = prepared_ahead(columns, self.questions, self.loaded.processor, self.workers)
        handle = attach(self.loaded.model, lam=0.0, scope=self.scope, method=self.method)
        counter = self.loaded.model.register_forward_hook(self._count_forward)
        try:
            with VisionReplay(self.loaded.model) as vision, contextlib.closing(ahead):
                for block, lacking, of_block in todo:
                    failed: list[FailedRow] = []
                    answers: dict[int, dict[int, Answer]] = {i: {} for i in lacking}
                    for _ in of_block:
                        self._answer_column(next(ahead), block, lacking, handle, vision, answers, failed, bar)
                    self._write(block, answers, failed)
                self.counts.vision_calls = vision.calls
                self.counts.vision_pictures = vision.pictures
        finally:
            counter.remove()
            handle.detach()

    def _columns(self, block: Block) -> list[Column]:
        return plan_columns(self.questions, range(block.start, block.stop), self.plan.batch_size)

    def _count_forward(self, *_: Any) -> None:
        self.counts.forwards += 1

    def _answer_column(self, prepared: Prepared, block: Block, lacking: list[int], handle: Any, vision: VisionReplay,
                       answers: dict[int, dict[int, Answer]], failed: list[FailedRow], bar: Progress) -> None:
        for row in prepared.failed:
            if self.strict:
                raise InputError(row.error)
            bar.say(f"agci: {row.error}")
            failed.append(row)
        for batch in prepared.batches:
            if self.token_grid is None and batch.pictures:
                self.token_grid = self._token_grid(batch)
            inputs = self._on_device(batch)
            for i in lacking:
                handle.lam = self.lambdas[i]
                made = self._answer_batch(batch, inputs, block, vision)
                answers[i].update(made)
                bar.add(len(made))

    def _answer_batch(self, batch: Batch, inputs: dict[str, torch.Tensor], block: Block,
                      vision: VisionReplay) -> dict[int, Answer]:
        """Answers by question number; a batch that does not fit into memory is halved."""
        stop = self.questions[batch.numbers[0]].stop
        try:
            vision.about(batch.pictures)
            made = self.answerer.answer(inputs, stop)
            self.counts.batches += 1
            return dict(zip(batch.numbers, made, strict=True))
        except torch.OutOfMemoryError as error:
            if len(batch.numbers) == 1:
                raise InputError(f"{self.questions[batch.numbers[0]].where}: memory does not suffice even for this row "
                                 f"alone ({str(error).splitlines()[0]}); try --dtype bfloat16, --max_pixels or "
                                 "--load_in_4bit.") from error
        # Outside the except clause: the traceback would keep the failed attempt's tensors alive.
        vision.about(None)
        if block.index not in self.counts.halved_blocks:
            self.counts.halved_blocks.append(block.index)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (len(batch.numbers) + 1) // 2
        answers: dict[int, Answer] = {}
        for half in (batch.numbers[:middle], batch.numbers[middle:]):
            for part in prepare(Column((half,)), self.questions, self.loaded.processor).batches:
                answers |= self._answer_batch(part, self._on_device(part), block, vision)
        return answers

    def _on_device(self, batch: Batch) -> dict[str, torch.Tensor]:
        model = self.loaded.model
        return {name: value.to(self.loaded.device, model.dtype if value.is_floating_point() else value.dtype)
                for name, value in batch.inputs.items()}

    def _write(self, block: Block, answers: dict[int, dict[int, Answer]], failed: list[FailedRow]) -> None:
        failed = sorted(failed)
        left_out = {row.row for row in failed}
        for i, of_lambda in answers.items():
            rows = [self._result_row(number, of_lambda[number]) for number in range(block.start, block.stop)
                    if number not in left_out]
            self.files[i].write(block.index, rows, failed)
            self.counts.rows += len(rows)
        self.counts.failed += failed

    def _result_row(self, number: int, answer: Answer) -> dict[str, Any]:
        question = self.questions[number]
        if question.stop.yes_no:
            self.counts.unreadable += not answer.text.startswith(ANSWER_WORDS)
            self.counts.disagreements += answer.logits_disagree
        asked = question.text if question.shown is None else question.shown
        return {**question.row, "prediction": answer.text, "qs": asked,
                **{name: value for name, value in answer.fields.items() if name != "prediction"}}

    def _token_grid(self, batch: Batch) -> dict[str, Any]:
        """The image tokens of the first prompt of the run."""
        image_token = self.loaded.model.config.image_token_id
        row = batch.text["input_ids"][0]
        grid = batch.pixels.get("image_grid_thw")
        return {"row": self.questions[batch.numbers[0]].where, "pictures": len(self.questions[batch.numbers[0]].pictures),
                "image_tokens": int((row == image_token).sum()),
                **({} if grid is None else {"patches_t_h_w": grid[0].tolist()})}
