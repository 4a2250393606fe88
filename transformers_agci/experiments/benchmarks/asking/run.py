"""One benchmark on a loaded model: every question at every lambda, then the scores and what differs between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import score_answers
from transformers_agci.experiments.benchmarks.asking.source import Source, question_set, score_inputs
from transformers_agci.experiments.benchmarks.declaration import Score
from transformers_agci.experiments.benchmarks.score_report import (
    Bootstrap,
    difference_report,
    interval_report,
    report_text,
)
from transformers_agci.inference.answering import AnswerOptions, answer_questions, as_engine
from transformers_agci.inference.engine import Engine, engine_lambdas, lambda_setting
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.methods import strengths_text
from transformers_agci.inference.process_group import is_main_process
from transformers_agci.inference.progress import Say
from transformers_agci.inference.questions import QuestionSet
from transformers_agci.inference.runner import output_paths
from transformers_agci.method.lam import lambda_text
from transformers_agci.method.rivals import RIVALS
from transformers_agci.storage.json_file import write_json
from transformers_agci.storage.overlap import check_answers
from transformers_agci.storage.result_names import sibling_path


@dataclass(frozen=True)
class AskOptions:
    """At which lambdas a benchmark is asked (none: the config key's), how it is answered, how its score is reported."""

    lambdas: Sequence[float] = ()
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    dry_run: bool = False


class BenchmarkAnswers(NamedTuple):
    """How it ended: 0, or 1 where rows were bad or could not be scored; `complete` where the files are whole.

    skipped  rows that were not answered, which the scores leave out; scored: whether there are scores
    """

    exit_code: int
    lambdas: Sequence[float]
    outputs: Sequence[Path]
    complete: bool
    skipped: int = 0
    scored: bool = False


def ask_benchmark(
    source: Source, answer_file: Path, options: AskOptions, load: Callable[[], Engine | LoadedModel], say: Say
) -> BenchmarkAnswers:
    """Ask every question, write one file per lambda, score; `load` gives what answers, when the data has been read."""
    asked = question_set(source)
    engine = as_engine(load())
    lambdas, lambda_source = engine_lambdas(engine, options.lambdas, options.answers)
    outputs = output_paths(answer_file, lambdas, options.answers.method)
    check_answers(outputs, data=source.data, annotations=source.annotations)
    say(
        f"{source.benchmark.title}, protocol {source.how}{' with a prompt of your own' if source.prompt else ''}: "
        f"{len(asked)} questions" + (f", {asked.omitted} rows outside its population" if asked.omitted else "")
    )
    if options.dry_run:
        return _dry_run(
            BenchmarkAnswers(1 if asked.bad_rows else 0, lambdas, outputs, False), options, engine, asked, say
        )
    noted = replace(asked, notes={**asked.notes, "lambda_source": lambda_source})
    summary = answer_questions(engine, noted, lambdas, outputs, options.answers)
    for line in summary.lines():
        say(line)
    if not summary.complete or not is_main_process():
        return BenchmarkAnswers(summary.exit_code, lambdas, outputs, False)
    partial = source.limit is not None or bool(summary.counts.failed)
    reports = Reports(source, options.bootstrap, partial)
    scored = score_outputs(reports, outputs, _labels(engine, lambdas, options.answers.method), say)
    return BenchmarkAnswers(
        max(summary.exit_code, scored), lambdas, outputs, True, len(summary.counts.failed), scored == 0
    )


def _labels(engine: Engine, lambdas: Sequence[float], method: str) -> list[float | str]:
    """What a score's report has under "lambda": the number, or a rival's name and strength."""
    if method in RIVALS:
        return [f"0, {strengths_text(method, [strength])}" for strength in lambdas]
    return [lambda_setting(engine, lam) for lam in lambdas]


def _dry_run(
    planned: BenchmarkAnswers, options: AskOptions, engine: Engine, asked: QuestionSet, say: Say
) -> BenchmarkAnswers:
    for line in engine.describe(asked.questions, planned.lambdas, planned.outputs, options.answers):
        say(line)
    for row in asked.bad_rows:
        say(row.error)
    return planned


class Reports(NamedTuple):
    """How result files are scored; `partial` where they hold the answers to some questions only."""

    source: Source
    bootstrap: Bootstrap
    partial: bool


def score_outputs(reports: Reports, outputs: Sequence[Path], lambdas: Sequence[float | str], say: Say) -> int:
    """Score each result file, write the figures beside it, compare the later lambdas with the first; 1: no score."""
    source, bootstrap, partial = reports
    declared = source.benchmark
    first: Score | None = None
    for path, lam in zip(outputs, lambdas, strict=True):
        try:
            score = score_answers(declared, score_inputs(source, path, partial))
        except InputError as error:
            say(f"no score: {error}")
            return 1
        report: dict[str, Any] = {
            "benchmark": declared.name,
            "variant": score.variant,
            "protocol": source.how,
            "mode": source.mode,
            "setting": source.setting,
            "lambda": lam,
            **score.figures,
        }
        if bootstrap.resamples > 0:
            report |= interval_report(declared, score, bootstrap)
        if first is not None:
            report["difference"] = difference_report(declared, first, score, bootstrap)
        note = ", not all questions were asked" if partial else ""
        say(f"\nlambda {lam if isinstance(lam, str) else lambda_text(lam)}, protocol {source.how}{note}")
        say(report_text(declared, score, report))
        write_json(sibling_path(path, ".score.json"), report, indent=1)
        first = first or score
    return 0
