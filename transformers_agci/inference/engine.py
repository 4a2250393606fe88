"""The seam between a run and what answers its questions: `Engine`.

An experiment has questions, lambdas, and a result file per lambda; `answering.answer_questions` makes a job of the
runner out of them. What answers is an engine:

    transformers   in this process, with everything replayed that was done before: answering.TransformersEngine
    vllm           vLLM with our plugin, which batches by itself: transformers_agci/vllm/
    openai         any server of chat completions: served/

The runner asks one thing of an engine: `answering(questions, lambdas, options)`, the work of one run. An engine that
takes questions one by one and gives each answer when it is ready makes that work with `QueuedAnswering`:

    class MyEngine:
        name, description = "mine", "Qwen2.5-VL, model M"  # the setting in the manifest; the words of the first line
        identity, notes = {"weights_sha256": ...}, {}      # what must be equal to go on; what is only recorded
        lam, sets_lambda, lambdas_together = None, True, False

        def answering(self, questions, lambdas, options):
            return QueuedAnswering(self, questions, options, partial(self._answers, lam=lambdas[0]), Counts())

        def _answers(self, numbered, lam):         # [(number, question)] -> [(number, Answer or InputError)]
            for number, question in numbered: ...  # take as many at once as the engine has room for
                yield number, Answer(text, yes_logprob, no_logprob)

        def describe(self, questions, lambdas, outputs, options): ...   # lines for a dry run
        def close(self): ...

Which engine a result was made with stands in its manifest, and no other one continues it.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers_agci.errors import InputError
from transformers_agci.inference.answer import Answer
from transformers_agci.inference.batches import Block, Plan, make_plan
from transformers_agci.inference.load import lambdas_of
from transformers_agci.inference.methods import rival_settings, strengths_text
from transformers_agci.inference.progress import Counts
from transformers_agci.inference.questions import Question
from transformers_agci.inference.runner import BlockResult, Reporter, Results, Task
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage.result_lines import FailedRow

if TYPE_CHECKING:
    from transformers_agci.inference.answering import AnswerOptions

AS_SERVED = "as served"  # lambda, method and scope of a server that nobody here can set
ANSWER_FIELDS = ("prediction", "qs", "yes_logit", "no_logit", "margin")  # of a result row, behind the input's

Numbered = Iterable[tuple[int, Question]]
Answers = Generator[tuple[int, Answer | InputError], None, None]


class Answering(Protocol):
    """The work of one run: called by the runner with the blocks that are left, it yields a BlockResult for each."""

    @property
    def plan(self) -> Plan:
        """How the questions divide into blocks: a function of the input and the options."""

    @property
    def counts(self) -> Counts:
        """What it took; grows while it works."""

    @property
    def details(self) -> dict[str, Any]:
        """Further entries for the manifest's run; may be filled while it works."""

    def settings(self) -> dict[str, Any]:
        """What a result file must have been made with to go on, beside engine, lambda and data: model, method, ..."""

    def __call__(self, tasks: Sequence[Task], reporter: Reporter) -> Results:
        """Answer block after block."""


class Engine(Protocol):
    """What answers questions; see the module's docstring for a sketch of one."""

    @property
    def name(self) -> str:
        """transformers, vllm or openai: a setting in the manifest."""

    @property
    def description(self) -> str:
        """Family and model in words, for the first line that a user reads."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What of the model must be equal for a result file to go on."""

    @property
    def notes(self) -> Mapping[str, Any]:
        """What the manifest only records."""

    @property
    def lam(self) -> float | None:
        """The lambda that the model's config.json carries, if that is known."""

    @property
    def sets_lambda(self) -> bool:
        """Whether lambda, method and scope can be chosen here; otherwise the manifest says "as served"."""

    @property
    def lambdas_together(self) -> bool:
        """Whether one run answers at several lambdas, block by block; otherwise there is one run per lambda."""

    def answering(self, questions: Sequence[Question], lambdas: Sequence[float], options: "AnswerOptions") -> Answering:
        """The work of one run; InputError where the options ask for what this engine cannot do."""

    def describe(
        self, questions: Sequence[Question], lambdas: Sequence[float], outputs: Sequence[Path], options: "AnswerOptions"
    ) -> list[str]:
        """What a run would do, as lines to read (`dry_run`)."""

    def close(self) -> None:
        """Give back what the engine holds: processes, connections, memory."""


def engine_lambdas(
    engine: Engine, given: Sequence[float] | None, options: "AnswerOptions | None" = None
) -> tuple[list[float], str]:
    """The lambdas to run and where they come from: what is given, else the config's key, else 0.

    For a rival it is its strength, which only the engine transformers can apply. For a server it is one run, at the
    lambda that it serves: InputError where one is given.
    """
    rival = rival_settings(options.method, options.method_options, given or ()) if options is not None else None
    if rival is not None and options is not None:
        if engine.name != "transformers":
            raise InputError(f"`method` {options.method} is applied by the engine transformers, not by {engine.name}.")
        return rival
    if engine.sets_lambda:
        return lambdas_of(given, engine)
    if given:
        raise InputError(
            f"`global_context_lambda` {' '.join(map(lambda_text, given))} cannot be set on a server: it is part of "
            f"what is served. Omit it; the manifest then says '{AS_SERVED}'."
        )
    return [0.0], "the server"


def lambdas_text(engine: Engine, lambdas: Sequence[float], method: str = "agci") -> str:
    """The lambdas of a run, or a rival's strength, for a line to read."""
    return strengths_text(method, lambdas) if engine.sets_lambda else f"lambda {AS_SERVED}"


def lambda_setting(engine: Engine, lam: float) -> float | str:
    """Lambda as the manifest has it."""
    return lam if engine.sets_lambda else AS_SERVED


def result_row(question: Question, answer: Answer) -> dict[str, Any]:
    """The row of a result file: the input row, what was answered, what was asked, the scores of Yes and No."""
    return {
        **question.row,
        "prediction": answer.text,
        "qs": question.text if question.shown is None else question.shown,
        **{name: value for name, value in answer.fields.items() if name != "prediction"},
    }


class QueuedAnswering:
    """The work of an engine that batches by itself: one stream of questions in, answers out in any order.

    Blocks are only what is written at once. `answers` takes questions as it has room and gives each back with its
    number; an InputError skips the row. What was taken and not written is asked again after a kill, so an engine does
    not take more than it needs to be busy. `generation` are the settings that shape a greedy answer.
    """

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[Question],
        options: "AnswerOptions",
        answers: Callable[[Numbered], Answers],
        counts: Counts,
        *,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        if options.batch_size is not None:
            raise InputError(f"`batch_size` is for the engine transformers: {engine.name} batches by itself. Omit it.")
        self._engine, self._questions, self._options, self._answers = engine, questions, options, answers
        self.plan = make_plan(questions, "cpu", None, options.block_rows)
        self.counts, self._generation = counts, generation or {}
        self.details: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Model, method and scope, the size of a block, the stop rules."""
        sets = self._engine.sets_lambda
        return {
            "model": dict(self._engine.identity),
            "method": self._options.method if sets else AS_SERVED,
            "scope": self._options.scope if sets else AS_SERVED,
            "block_rows": self.plan.block_rows,
            "generation": {"decoding": "greedy", **self._generation},
            "stop": stop_words(self._questions),
        }

    def __call__(self, tasks: Sequence[Task], reporter: Reporter) -> Results:
        """Each block as soon as it and all before it are answered."""
        blocks = [self.plan.blocks[task.block] for task in tasks]
        numbered = ((number, self._questions[number]) for block in blocks for number in range(block.start, block.stop))
        found: dict[int, Answer | InputError] = {}
        with contextlib.closing(self._answers(numbered)) as answers:
            for block in blocks:
                for number, answer in self._until_complete(block, found, answers):
                    if isinstance(answer, InputError):
                        reporter.skip(FailedRow(number, self._questions[number].where, str(answer)))
                    reporter.advance(1)
                yield self._block_result(block, found)

    def _until_complete(
        self, block: Block, found: dict[int, Answer | InputError], answers: Answers
    ) -> Iterator[tuple[int, Answer | InputError]]:
        """Take answers, of whatever block, until this one has all of its own."""
        left = {number for number in range(block.start, block.stop) if number not in found}
        while left:
            number, answer = next(answers)  # an engine that loses a question ends here, with a RuntimeError
            found[number] = answer
            left.discard(number)
            yield number, answer

    def _block_result(self, block: Block, found: dict[int, Answer | InputError]) -> BlockResult:
        rows, failed = [], []
        for number in range(block.start, block.stop):
            question, answer = self._questions[number], found.pop(number)
            if isinstance(answer, InputError):
                failed.append(FailedRow(number, question.where, str(answer)))
            else:
                rows.append(result_row(question, answer))
        return BlockResult([rows], failed)


def stop_words(questions: Sequence[Question]) -> list[str]:
    """The stop rules of the questions, as the manifest has them."""
    rules = sorted({question.stop for question in questions})
    return [f"{'Yes/No or ' if rule.yes_no else ''}{rule.max_new_tokens} new tokens" for rule in rules]
