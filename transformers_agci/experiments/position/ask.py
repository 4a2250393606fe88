"""The position probe from what a user asks for to the lines that the user reads."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import ATLAS_ITEMS
from transformers_agci.experiments.engines import EngineOptions, open_engine
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data
from transformers_agci.experiments.position.metrics import accuracies_text, controls_text, load_controls
from transformers_agci.experiments.position.questions import Control, questions
from transformers_agci.experiments.position.run import PositionProbe
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.engine import Engine, engine_lambdas, lambdas_text
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.process_group import ProcessGroup, main_process_output
from transformers_agci.inference.progress import Say
from transformers_agci.storage.overlap import check_answers
from transformers_agci.storage.result_names import sibling_path


@dataclass(frozen=True)
class ProbeOptions:
    """A probe: model, rows, lambdas and where the answers go.

    eval_file       the rows; None: composites of the embedded atlas
    negatives_file  rows whose right answer is No, on the same images
    items           at most so many items (of the atlas: so many, 100 where None); `limit` at most so many rows
    lambdas         none: the config key's; `lambda_source` says where they come from
    controls        what is asked beside the rows without their image
    engine          how one is opened, or one that is open, which stays open; then `model` is not looked at
    data            rows that were read already, instead of a file or the atlas
    """

    model: LoadOptions
    eval_file: Path | None = None
    img_path: Path | None = None
    negatives_file: Path | None = None
    items: int | None = None
    limit: int | None = None
    seed: int = 0
    answer_file: Path = Path("position_probe.jsonl")
    lambdas: Sequence[float] = ()
    lambda_source: str = "the command line"
    controls: Sequence[Control] = ()
    planted_bias: float = 0.0
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    dry_run: bool = False
    engine: EngineOptions | Engine = field(default_factory=EngineOptions)
    data: ProbeData | None = None


class Probed(NamedTuple):
    """0, or 1 where rows were bad; and what `agci metrics` is given to draw the map, where the files are whole."""

    exit_code: int
    files: Mapping[str, Sequence[Path]] = MappingProxyType({})  # results, text_only, blank_image


def ask_probe(options: ProbeOptions, say: Say) -> Probed:
    """Ask, write, and say what came out."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(ProcessGroup())  # one for the probe and its controls
        stack.enter_context(main_process_output())
        drawn_in = sibling_path(options.answer_file, ".probe_set")
        if options.dry_run:
            drawn_in = Path(stack.enter_context(tempfile.TemporaryDirectory()), "probe_set")
        data = _data(options, drawn_in)
        engine = stack.enter_context(_engine(options))
        probe = _probe(options, engine, data, say)
        _check_overlap(probe, options.controls)
        if options.dry_run:
            return Probed(_dry_run(probe, options.controls, say))
        summaries = [probe.ask(), *(probe.ask_without_image(control) for control in options.controls)]
        for line in (line for summary in summaries for line in summary.lines()):
            say(line)
        code = max(summary.exit_code for summary in summaries)
        if not group.is_main or not all(summary.complete for summary in summaries):
            return Probed(code)
        counts = summaries[0].counts
        if counts.failed and not counts.rows and not counts.already_done:
            raise InputError(
                f"No row was answered, and all {len(counts.failed)} stay skipped until `overwrite` is given, "
                f"for instance {counts.failed[0].error}"
            )
        return Probed(code, _show(probe, options.controls, say))


def _check_overlap(probe: PositionProbe, controls: Sequence[Control]) -> None:
    """InputError where an answer file is, or shares its manifest with, a file of the questions."""
    outputs = [*probe.outputs, *(path for control in controls for path in probe.control_outputs(control))]
    check_answers(outputs, eval_file=probe.data.source, negatives_file=probe.data.negatives_file)


def _data(options: ProbeOptions, drawn: Path) -> ProbeData:
    """The rows of the file, or composites drawn into the folder `drawn`."""
    if options.data is not None:
        return options.data
    if options.eval_file is None:
        if options.img_path or options.negatives_file:
            raise InputError(
                "`img_path` and `negatives_file` belong to `eval_file`; without it the embedded atlas "
                "makes the images and the negatives."
            )
        return embedded_data(drawn, options.items or ATLAS_ITEMS, options.seed, options.limit)
    if options.img_path is None:
        raise InputError("`img_path` is needed with `eval_file`: the folder that holds the rows' images.")
    return read_data(options.eval_file, options.img_path, options.negatives_file, options.items, options.limit)


@contextlib.contextmanager
def _engine(options: ProbeOptions) -> Iterator[Engine]:
    if not isinstance(options.engine, EngineOptions):
        yield options.engine
        return
    with contextlib.closing(open_engine(options.engine, options.model, weights=not options.dry_run)) as engine:
        yield engine


def _probe(options: ProbeOptions, engine: Engine, data: ProbeData, say: Say) -> PositionProbe:
    """What the engine is asked; said before the long work begins."""
    lambdas, source = engine_lambdas(engine, options.lambdas, options.answers)
    if options.lambdas:
        source = options.lambda_source
    file = None if options.eval_file is None else str(options.eval_file)
    say(f"{lambdas_text(engine, lambdas, options.answers.method)} (from {source}); {engine.description}")
    say(f"{counted(data.rows, 'row')}, {counted(len(data.items), 'item')} from {data.source}")
    notes = {"lambda_source": source, "eval_file": file, "img_path": str(data.img_path)}
    return PositionProbe(engine, data, lambdas, options.answer_file, options.answers, notes, options.planted_bias)


def _dry_run(probe: PositionProbe, controls: Sequence[Control], say: Say) -> int:
    """Say what would be done; bad rows are named all the same."""
    outputs = [*probe.outputs, *(path for control in controls for path in probe.control_outputs(control))]
    asked = questions(probe.data.items, probe.data.img_path)
    for line in probe.engine.describe(asked, probe.lambdas, outputs, probe.options):
        say(line)
    for row in probe.data.bad_rows:
        say(row.error)
    return 1 if probe.data.bad_rows else 0


def _show(probe: PositionProbe, controls: Sequence[Control], say: Say) -> Mapping[str, Sequence[Path]]:
    """Accuracy per lambda, and the Yes-rates without an image; returns the files."""
    files = {control.value: probe.control_outputs(control) for control in controls}
    say(f"\n{accuracies_text(probe.outputs)}")
    if controls:
        said = controls_text(load_controls(files.get("text_only", []), files.get("blank_image", [])))
        say(f"\n{said}")
    return {"results": probe.outputs, **files}
