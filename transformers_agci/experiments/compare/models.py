"""Every method on every model: asked, compared, measured beside the probe, written to the files that the user reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers_agci.errors import CannotServe, InputError, counted
from transformers_agci.experiments.benchmarks import benchmark
from transformers_agci.experiments.compare.arms import STOCK
from transformers_agci.experiments.compare.on_ruler import measure_on_ruler, ruler_text
from transformers_agci.experiments.compare.report import (
    Compared,
    ReportOptions,
    chooses,
    compare_arms,
    compared_figure,
    compared_json,
    compared_text,
    overview,
    split_items,
)
from transformers_agci.experiments.compare.run import (
    ArmResult,
    CompareOptions,
    ask_arms,
    check_engine,
    model_folder,
    read_compared,
)
from transformers_agci.experiments.engines import NEEDS_THE_MODEL
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.progress import Say
from transformers_agci.report.heatmap import write_figure
from transformers_agci.report.table import Table
from transformers_agci.storage import manifest
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.json_file import write_report
from transformers_agci.storage.result_names import sibling_path

if TYPE_CHECKING:
    from transformers_agci.experiments.benchmarks.asking.run import BenchmarkAnswers

NUMBERS, TEXT, FIGURE = "compared.json", "compared.txt", "compared.png"  # in the folder of the results


class Beside(NamedTuple):
    """What is measured beside the probe: items on the ruler, and a benchmark."""

    ruler: int | None = None
    processes: int = 1
    benchmark: str | None = None
    benchmark_data: Path | None = None
    benchmark_images: Path | None = None
    benchmark_prompt: str | None = None


@dataclass(frozen=True)
class ModelComparison:
    """One model: every arm's result, what was chosen and found, in words (`blocks`) and in numbers.

    left_out  of each arm that could not answer, or not every row of the benchmark, by its label, why
    """

    name: str
    folder: Path
    results: Sequence[ArmResult]
    compared: Compared
    blocks: Sequence[str]
    numbers: Mapping[str, Any]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class ComparedModels:
    """All models; exit_code is 1 where rows were bad, or an arm or a model was left out.

    left_out  of each model that could not be asked, by its name, why
    """

    exit_code: int
    models: Sequence[ModelComparison]
    left_out: Mapping[str, str]

    @property
    def overview(self) -> Table:
        """All of them in one table."""
        return overview({model.name: model.compared for model in self.models})

    @property
    def text(self) -> str:
        """The table, and below it who is missing."""
        return "\n\n".join([self.overview.text, *(f"{name}: left out. {why}" for name, why in self.left_out.items())])


def compare_models(
    options: CompareOptions, report: ReportOptions, beside: Beside, target: Path | None, say: Say
) -> ComparedModels:
    """Ask, choose and report for each model, then all of them in one table; `target` is the file of all numbers."""
    _check(options, beside)
    data = read_compared(options)
    for row in data.bad_rows:
        say(row.error)
    _check_rows(data)
    # Too few items are an error before hours of asking.
    split_items(_captions(data), report.dev_share, chooses(options.arms))
    several, models, left_out = len(options.models) > 1, list[ModelComparison](), dict[str, str]()
    for number in range(len(options.models)):
        try:
            models.append(_compare_model(options, report, beside, number, data, None if several else target, say))
        except InputError as error:
            if not several:
                raise
            left_out[_name(options, number)] = str(error)
            say(f"\n{_name(options, number)}: left out. {error}")
            continue
        say("\n" + "\n\n".join(models[-1].blocks))
        say(_write(models[-1], None if several else target))
    if not models:
        raise InputError(f"None of the models could be asked. {next(iter(left_out.values()))}")
    found = ComparedModels(int(bool(left_out) or not all(map(_is_whole, models))), models, left_out)
    if several:
        say(f"\n{_write_overview(found, options.folder, target)}")
    return found


def _is_whole(model: ModelComparison) -> bool:
    return not model.left_out and not any(result.skipped for result in model.results)


def _check_rows(data: ProbeData) -> None:
    """InputError where there are rows of one answer only, before hours of asking."""
    answers = {row.answer for rows in data.items.values() for row in rows}
    for answer, remedy in (("Yes", "give them as `data`"), ("No", "give them as `negatives_file`")):
        if answer not in answers:
            raise InputError(
                f"There is no row whose right answer is {answer}, and methods are compared by both: {remedy}."
            )


def _name(options: CompareOptions, number: int) -> str:
    """How a model is called beside the others."""
    return model_folder(options, number).name if len(options.models) > 1 else options.models[number].name


def _compare_model(  # noqa: PLR0917 - what a model is compared with
    options: CompareOptions,
    report: ReportOptions,
    beside: Beside,
    number: int,
    data: ProbeData,
    target: Path | None,
    say: Say,
) -> ModelComparison:
    model, name, folder = options.models[number], _name(options, number), model_folder(options, number)
    with model.opened() as engine:
        check_engine(engine.name, options.arms)
        results, left_out = ask_arms(options, engine, folder, data, say)
        compared = compare_arms(results, report)
        blocks, numbers = [compared_text(compared, results, left_out)], compared_json(compared, results, left_out)
        found = ModelComparison(name, folder, results, compared, blocks, numbers, left_out)
        if beside.benchmark is not None or beside.ruler is not None:
            say(_write(found, target))  # what comes now may end in an error
        if beside.benchmark is not None:
            text, scores, unasked = _benchmark(options, engine, beside, compared, folder)
            left_out = {**left_out, **unasked}
            numbers = {**numbers, "benchmark": scores, "left_out": left_out}
            found = replace(found, blocks=[*blocks, text], numbers=numbers, left_out=left_out)
    if beside.ruler is not None:
        arms = [result.arm for result in compared.chosen]
        summary, unmeasured = measure_on_ruler(folder, arms, beside.ruler, options.seed, beside.processes)
        measured = {"items": beside.ruler, "conditions": summary, "left_out": unmeasured}
        text = f"on the ruler, {counted(beside.ruler, 'item')}:\n\n{ruler_text(summary, unmeasured)}"
        found = replace(found, blocks=[*found.blocks, text], numbers={**found.numbers, "ruler": measured})
    return found


def _captions(data: ProbeData) -> dict[str, str]:
    """What each item asks for: the caption of its Yes rows."""
    return {
        item: next((row.caption for row in rows if row.answer == "Yes"), rows[0].caption)
        for item, rows in data.items.items()
    }


def _check(options: CompareOptions, beside: Beside) -> None:
    from transformers_agci.embedded import embedded_model_path

    check_engine(options.engine, options.arms)
    if beside.ruler is not None and options.engine != "transformers":
        raise InputError(f"`engine` {options.engine}: `ruler` {NEEDS_THE_MODEL}. Omit one of the two.")
    embedded = {str(embedded_model_path())}
    if beside.ruler is not None and {model.name for model in options.models} != embedded:
        raise InputError("`ruler` plants its biases in the embedded model: compare that one alone.")
    if (beside.benchmark is None) != (beside.benchmark_data is None):
        raise InputError("`benchmark` and `benchmark_data` belong together: give both or none.")
    if beside.benchmark is not None:
        benchmark(beside.benchmark)  # an unknown name is an error before hours of asking
    for name, given in (("benchmark_images", beside.benchmark_images), ("benchmark_prompt", beside.benchmark_prompt)):
        if given is not None and beside.benchmark is None:
            raise InputError(f"`{name}` is for a benchmark, but `benchmark` is not given; omit it.")
    for name, given in (("img_path", options.img_path), ("negatives_file", options.negatives)):
        if given is not None and options.data is None:
            raise InputError(
                f"`{name}` belongs to `data`; without it the embedded atlas makes the images and the negatives."
            )


def _benchmark(
    options: CompareOptions, engine: Engine, beside: Beside, compared: Compared, folder: Path
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Each chosen arm on a benchmark: its scores as `agci benchmark` has them, and who is left out there and why."""
    from transformers_agci.experiments.benchmarks.asking.run import AskOptions, ask_benchmark
    from transformers_agci.experiments.benchmarks.asking.source import Source
    from transformers_agci.storage.json_file import read_json_object

    assert beside.benchmark is not None
    images, prompt = beside.benchmark_images, beside.benchmark_prompt
    source = Source(benchmark(beside.benchmark), beside.benchmark_data, image_root=images, prompt=prompt)
    strength = "the strength that was chosen on the probe" if compared.split.dev else "its strength"
    said = [f"{beside.benchmark}, each method at {strength}:"]
    numbers, left_out = dict[str, Any](), dict[str, str]()
    for result in compared.chosen:
        lines: list[str] = []
        arm = result.arm
        answers = AnswerOptions(
            options.batch_size, method=arm.engine_method, run=options.run, method_options=arm.method_options
        )
        file = folder / f"{beside.benchmark}.{arm.file_name}"
        lambdas = [] if arm.is_rival else [arm.value]
        try:
            asked = ask_benchmark(source, file, AskOptions(lambdas, answers), lambda: engine, lines.append)
        except CannotServe as error:
            if arm.method == STOCK:
                raise
            left_out[f"{arm.label} on {beside.benchmark}"] = str(error)
            said.append(f"--- {arm.label}\nleft out. {error}")
            continue
        said.append(f"--- {arm.label}\n" + "\n".join(lines[-2:]).strip())
        lacks = _lacks(asked, lines)
        if asked.scored:
            partial = {"partial": lacks} if lacks else {}
            numbers[arm.label] = partial | read_json_object(sibling_path(asked.outputs[0], ".score.json"))
        if lacks:
            left_out[f"{arm.label} on {beside.benchmark}"] = lacks
            said.append(f"{arm.label}: {lacks}")
    return "\n\n".join(said), numbers, left_out


def _lacks(asked: "BenchmarkAnswers", lines: Sequence[str]) -> str:
    """What is missing in an arm's answers to a benchmark; empty where nothing is."""
    skipped = f"{counted(asked.skipped, 'row')} skipped" if asked.skipped else ""
    if asked.scored:
        return f"{skipped}; the score is that of the others." if skipped else ""
    return "; ".join(filter(None, [skipped, lines[-1].strip() if lines else "", "there is no score."]))


def _write(model: ModelComparison, target: Path | None) -> str:
    """Write numbers, text and figure of one model; returns what to say."""
    file = target or model.folder / NUMBERS
    write_report(file, {**model.numbers, **_environment()}, indent=2)
    write_atomic(model.folder / TEXT, ("\n\n".join(model.blocks) + "\n").encode())
    figure = write_figure(compared_figure(model.compared), model.folder / FIGURE)
    return f"\nwritten: {model.folder / TEXT}, {file}; figure: {figure}"


def _write_overview(found: ComparedModels, folder: Path, target: Path | None) -> str:
    """Write the table of all models, and all numbers; returns what to say."""
    file, text = target or folder / NUMBERS, found.text
    numbers = {model.name: model.numbers for model in found.models}
    write_report(file, {"models": numbers, "left_out": found.left_out, **_environment()}, indent=2)
    write_atomic(folder / TEXT, f"{text}\n".encode())
    return f"{text}\n\nwritten: {folder / TEXT}, {file}"


def _environment() -> dict[str, Any]:
    return {"environment": manifest.environment()}
