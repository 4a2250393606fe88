"""The runner's work for questions: batches answered at every lambda, with nothing computed twice.

Within a block the images of a batch are encoded once for all its questions and lambdas (vision replay), and the
questions about one list of images share the keys and values of what stands before them (prefix replay). A batch that
does not fit into memory is halved until it does.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers_agci.embedded.location import EMBEDDED, embedded_model_path
from transformers_agci.errors import counted
from transformers_agci.families import find_vlm, image_token_id
from transformers_agci.inference.answer import Answer, Answerer, recorded_settings
from transformers_agci.inference.attention_plans import varying_lengths
from transformers_agci.inference.batches import BATCH_SIZE, Column, Plan, make_plan, plan_columns
from transformers_agci.inference.columns import BlockAnswers, ColumnWork, positions_by
from transformers_agci.inference.dry_run import describe
from transformers_agci.inference.engine import (
    ANSWER_FIELDS,
    Answering,
    Engine,
    lambda_setting,
    result_row,
    stop_words,
)
from transformers_agci.inference.host_values import host_values
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.methods import method_notes, method_on, method_settings, replays_off
from transformers_agci.inference.other_image import check_other, other_image_on, seed_of_other
from transformers_agci.inference.prefetch import default_workers
from transformers_agci.inference.prefix_replay import PrefixReplay
from transformers_agci.inference.prepare import (
    Batch,
    Prepared,
    RawPixels,
    crossing_pixels,
    prepared_ahead,
)
from transformers_agci.inference.progress import Counts, RunSummary, joined
from transformers_agci.inference.questions import Question, QuestionSet
from transformers_agci.inference.runner import (
    BlockResult,
    Job,
    Output,
    Reporter,
    Results,
    RunOptions,
    Task,
    run,
)
from transformers_agci.inference.upload import Upload
from transformers_agci.inference.vision_replay import VisionReplay
from transformers_agci.method.rivals import RIVALS
from transformers_agci.storage.result_lines import FailedRow


@dataclass(frozen=True)
class AnswerOptions:
    """How questions are batched, prepared and answered, and how the run goes.

    batch_size  lists of images per forward call, default by device
    block_rows  least rows of a block, default four batches
    workers     processes that prepare images; default: none on a CPU, which has the model to run, 4 beside a GPU
    method_options  strength and other options of a rival
    """

    batch_size: int | None = None
    block_rows: int | None = None
    workers: int | None = None
    method: str = "agci"
    scope: str = "image"
    run: RunOptions = field(default_factory=RunOptions)
    method_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class AnswerCounts(Counts):
    """What answering questions took."""

    batches: int = 0
    forwards: int = 0  # forward calls of the whole model
    vision_calls: int = 0
    vision_images: int = 0  # images that the vision side encoded
    prefill_tokens: int = 0  # prompt tokens that went through the decoder
    replayed_tokens: int = 0  # prompt tokens whose keys and values another question about the images had left
    disagreements: int = 0  # Yes/No rows whose raw logits order the words against the answer
    halved_blocks: list[int] = field(default_factory=list)
    image_changes: Counter[str] = field(default_factory=Counter)  # what had to be done to how many images

    def details(self) -> list[str]:
        """Images and forward calls."""
        return [f"vision ran on {counted(self.vision_images, 'image')}, {counted(self.forwards, 'forward call')}"]

    def remarks(self) -> list[str]:
        """Answers against their logits, blocks that memory did not hold, images that were not shown as stored."""
        said = []
        if self.disagreements:
            go = "answer goes" if self.disagreements == 1 else "answers go"
            said.append(f"{self.disagreements} {go} against the order of the raw Yes and No logits.")
        if self.halved_blocks:
            said.append(
                f"Memory ran out in {counted(len(self.halved_blocks), 'block')}; the batches were halved: "
                f"{', '.join(map(str, self.halved_blocks[:10]))}."
            )
        if self.image_changes:
            each = (f"{counted(count, 'image')}: {change}" for change, count in sorted(self.image_changes.items()))
            said.append(f"Not shown as stored: {'; '.join(each)}.")
        return said

    def record(self, seconds: float) -> dict[str, Any]:
        """The manifest's entry, under the names that it has always had."""
        return {
            "answers": self.rows,
            "rows_per_s": round(self.rows / seconds, 3) if seconds else None,
            "forwards": self.forwards,
            "vision_pictures": self.vision_images,
            "prefill_tokens": self.prefill_tokens,
            "replayed_tokens": self.replayed_tokens,
            "disagreements": self.disagreements,
            "halved_blocks": self.halved_blocks,
        } | ({"image_changes": dict(sorted(self.image_changes.items()))} if self.image_changes else {})


@dataclass(frozen=True)
class TransformersEngine:
    """The engine in this process: transformers' model with our hooks, at several lambdas in one run."""

    loaded: LoadedModel
    name: ClassVar[str] = "transformers"
    sets_lambda: ClassVar[bool] = True
    lambdas_together: ClassVar[bool] = True

    def __repr__(self) -> str:
        return f"<{self.description}>"  # a notebook shows it; the fields are pages long

    @property
    def description(self) -> str:
        """Family, and where the model lay."""
        model = self.loaded.notes.get("model")
        return f"{self.loaded.family.name}, model {EMBEDDED if model == str(embedded_model_path()) else model}"

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the loaded model."""
        return self.loaded.identity

    @property
    def notes(self) -> Mapping[str, Any]:
        """Those of the loaded model."""
        return self.loaded.notes

    @property
    def lam(self) -> float | None:
        """The lambda of config.json."""
        return self.loaded.lam

    def answering(self, questions: Sequence[Question], lambdas: Sequence[float], options: AnswerOptions) -> Answering:
        """The work of one run, at all lambdas."""
        return _Answering(self.loaded, questions, list(lambdas), options)

    def describe(
        self, questions: Sequence[Question], lambdas: Sequence[float], outputs: Sequence[Path], options: AnswerOptions
    ) -> list[str]:
        """The first prompt, its tokens, the memory, the plan."""
        return describe(self.loaded, questions, lambdas, outputs, batch_size=options.batch_size)

    def close(self) -> None:
        """The model is the caller's."""


def as_engine(engine: Engine | LoadedModel) -> Engine:
    """A loaded model as the engine that it is."""
    return TransformersEngine(engine) if isinstance(engine, LoadedModel) else engine


def answer_questions(
    engine: Engine | LoadedModel,
    asked: QuestionSet,
    lambdas: Sequence[float],
    outputs: Sequence[Path],
    options: AnswerOptions | None = None,
) -> RunSummary:
    """Ask every question at every lambda and write one result file per lambda (see `runner.output_paths`).

    A result row is the question's row with `prediction` and `qs`, and for Yes/No questions `yes_logit`, `no_logit`
    and `margin` = yes - no. Finished blocks are kept and skipped, so the same call goes on after a kill. In the engine
    transformers the vision side runs once per image and block for all its questions and lambdas.
    """
    if len(outputs) != len(lambdas):
        raise ValueError(f"{len(lambdas)} lambdas need as many outputs, not {len(outputs)}")
    engine, options = as_engine(engine), options or AnswerOptions()
    if not engine.lambdas_together and len(lambdas) > 1:
        each = zip(lambdas, outputs, strict=True)
        return joined([answer_questions(engine, asked, [lam], [path], options) for lam, path in each])
    work = engine.answering(asked.questions, lambdas, options)
    settings = {"engine": engine.name, **work.settings(), **asked.settings}
    return run(
        Job(
            work,
            [question.row for question in asked.questions],
            [block.size for block in work.plan.blocks],
            [
                Output(path, settings | _strength_settings(engine, options, lam))
                for lam, path in zip(lambdas, outputs, strict=True)
            ],
            {**engine.notes, **method_notes(options.method), **asked.notes},
            asked.bad_rows,
            work.counts,
            work.details,
            "answer",
            ANSWER_FIELDS,
        ),
        options.run,
    )


def _strength_settings(engine: Engine, options: AnswerOptions, value: float) -> dict[str, Any]:
    """Lambda of AGCI and its controls, strength and options of a rival."""
    if options.method in RIVALS:
        return method_settings(options.method, options.method_options, value)
    return {"lambda": lambda_setting(engine, value)}


class _Answering:
    """The work function of one run in one process."""

    def __init__(
        self, loaded: LoadedModel, questions: Sequence[Question], lambdas: list[float], options: AnswerOptions
    ) -> None:
        check_other(options.method, options.scope)
        self.loaded, self.questions, self.lambdas, self.options = loaded, questions, lambdas, options
        size = loaded.batch_size(options.batch_size, BATCH_SIZE)
        self.plan: Plan = make_plan(questions, loaded.device.type, size, options.block_rows)
        self.answerer = Answerer(loaded.model, loaded.processor)
        self.raw: RawPixels | None = crossing_pixels(loaded)
        self.processor = loaded.processor if self.raw is None else self.raw.processor
        self.counts = AnswerCounts()
        self._lengths: dict[str, int] = {}
        self.details: dict[str, Any] = {
            "pixels_normalised_on": loaded.device.type if self.raw else "cpu",
            "token_grid": None,
            **replays_off(RIVALS.get(options.method)),
        }

    def settings(self) -> dict[str, Any]:
        """What a result file must have been made with to go on, beside lambda and the data."""
        return {
            "model": dict(self.loaded.identity),
            "method": self.options.method,
            "scope": self.options.scope,
            "batch_size": self.plan.batch_size,
            "block_rows": self.plan.block_rows,
            "generation": recorded_settings(self.answerer.settings),
            "stop": stop_words(self.questions),
        }

    def __call__(self, tasks: Sequence[Task], reporter: Reporter) -> Results:
        """Answer block after block."""
        columns = [column for task in tasks for column in self._columns(task)]
        positions, processor = positions_by(self.loaded), self.processor
        host = host_values(self.loaded)
        upload = Upload(self.loaded, self.raw, grids_stay=host is not None and host.grids_stay)
        work = ColumnWork(
            self.loaded,
            self.questions,
            self.answerer,
            upload=upload,
            positions=positions,
            scope=self.options.scope,
            counts=self.counts,
            replays_off=replays_off(RIVALS.get(self.options.method)),
        )
        with (
            self._counted_forwards(),
            prepared_ahead(columns, self.questions, processor, self._workers, positions) as ahead,
            self._method_on() as handle,
            host or contextlib.nullcontext(),
            varying_lengths(self.loaded),
            work.replaying(),
            contextlib.closing(upload.ahead(ahead)) as arriving,
        ):

            def at_lambda(i: int) -> None:
                handle.strength = self.lambdas[i]

            for task in tasks:
                made = BlockAnswers(self.plan.blocks[task.block], task.outputs)
                failed: list[FailedRow] = []
                for _ in self._columns(task):
                    prepared, sent = next(arriving)
                    failed += self._noted(prepared, reporter)
                    work.answer(prepared.batches, made, at_lambda, reporter, sent)
                failed += made.failed.values()
                self._count(work.vision, work.prefix)
                yield BlockResult([self._rows(made, i) for i in task.outputs], sorted(failed))

    def _noted(self, prepared: Prepared, reporter: Reporter) -> Sequence[FailedRow]:
        """Note what preparing a column showed; the rows that cannot be asked."""
        for row in prepared.failed:
            reporter.skip(row)
        self.counts.image_changes += prepared.image_changes
        self._note_token_grid(prepared.batches)
        return prepared.failed

    def _method_on(self) -> contextlib.AbstractContextManager[Any]:
        options = self.options
        seed = seed_of_other(options.method)
        if seed is not None:
            return other_image_on(self.loaded, seed)
        return method_on(self.loaded.model, options.method, options.scope, options.method_options)

    @property
    def _workers(self) -> int:
        given = self.options.workers
        return default_workers(self.loaded.device.type) if given is None else given

    def _columns(self, task: Task) -> list[Column]:
        block = self.plan.blocks[task.block]
        length = self._tokens if "equal_lengths" in self.loaded.quick else len
        return plan_columns(self.questions, range(block.start, block.stop), self.plan.batch_size, length)

    def _tokens(self, text: str) -> int:
        """Of a question's own text."""
        if text not in self._lengths:
            known = text.encode("utf-8", "replace").decode()  # half a surrogate pair is named when the row is prepared
            self._lengths[text] = len(self.loaded.processor.tokenizer(known, add_special_tokens=False)["input_ids"])
        return self._lengths[text]

    @contextlib.contextmanager
    def _counted_forwards(self) -> Iterator[None]:
        def count(*_: Any) -> None:
            self.counts.forwards += 1

        hook = self.loaded.model.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()

    def _count(self, vision: VisionReplay, prefix: PrefixReplay) -> None:
        self.counts.vision_calls, self.counts.vision_images = vision.calls, vision.images
        self.counts.prefill_tokens, self.counts.replayed_tokens = prefix.prefill_tokens, prefix.replayed_tokens

    def _rows(self, made: BlockAnswers, i: int) -> list[dict[str, Any]]:
        """The block's result rows at one lambda, in input order."""
        answers = made.answers[i]
        return [self._result_row(number, answers[number]) for number in sorted(answers) if number not in made.failed]

    def _result_row(self, number: int, answer: Answer) -> dict[str, Any]:
        self.counts.disagreements += answer.logits_disagree
        return result_row(self.questions[number], answer)

    def _note_token_grid(self, batches: Sequence[Batch]) -> None:
        if self.details["token_grid"] is None and batches and batches[0].images:
            self.details["token_grid"] = self._token_grid(batches[0])

    def _token_grid(self, batch: Batch) -> dict[str, Any]:
        """The image tokens of the first prompt of the run, for the manifest."""
        image_token = image_token_id(find_vlm(self.loaded.model).config)
        row = batch.text["input_ids"][0]
        grid = batch.pixels.get("image_grid_thw")
        asked = self.questions[batch.numbers[0]]
        return {
            "row": asked.where,
            "pictures": len(asked.images),
            "image_tokens": int((row == image_token).sum()),
            **({} if grid is None else {"patches_t_h_w": grid[0].tolist()}),
        }
