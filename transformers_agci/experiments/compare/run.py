"""A comparison's run: every arm asks the same rows, one result file each, gone on with after a kill."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.data.rows import require_number, require_whole_number
from transformers_agci.errors import CannotServe, InputError, counted
from transformers_agci.experiments.compare.arms import STOCK, Arm
from transformers_agci.experiments.defaults import ATLAS_ITEMS
from transformers_agci.experiments.engines import NEEDS_THE_MODEL
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data
from transformers_agci.experiments.position.questions import prompt_form, questions
from transformers_agci.inference.answering import AnswerOptions, TransformersEngine, answer_questions
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.progress import Say
from transformers_agci.inference.questions import QuestionSet
from transformers_agci.inference.runner import RunOptions
from transformers_agci.storage import manifest
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.overlap import check_answers
from transformers_agci.storage.reading import path_text


class Candidate(NamedTuple):
    """A model that is compared: its name or folder, and how it is made ready to answer."""

    name: str
    opened: Callable[[], contextlib.AbstractContextManager[Engine]]


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, on what, and where it goes.

    rows       of the position probe, where they have been read; else
    data       rows of the position probe; None: composites of the embedded atlas
    negatives  rows whose right answer is No
    items      at most so many items (of the atlas: so many, ATLAS_ITEMS where None)
    engine     its name: transformers, or vllm for arms of AGCI and its controls
    """

    models: Sequence[Candidate]
    arms: Sequence[Arm]
    folder: Path
    data: Path | None = None
    img_path: Path | None = None
    negatives: Path | None = None
    items: int | None = None
    seed: int = 0
    batch_size: int | None = None
    run: RunOptions = field(default_factory=RunOptions)
    engine: str = "transformers"
    rows: ProbeData | None = None


class ArmResult(NamedTuple):
    """An arm's result file, what it took, and how many rows could not be asked."""

    arm: Arm
    file: Path
    ms_per_row: float | None
    kib_per_row: float | None  # by how much memory grew at most, over the lists of images in a batch
    skipped: int = 0


def read_compared(options: CompareOptions) -> ProbeData:
    """The rows that every arm is asked."""
    if options.rows is not None:
        return options.rows
    if options.data is None:
        return embedded_data(options.folder / "probe_set", options.items or ATLAS_ITEMS, options.seed, None)
    if options.img_path is None:
        raise InputError("`img_path` is needed with `data`: the folder that holds the rows' images.")
    return read_data(options.data, options.img_path, options.negatives, options.items, None)


def model_folder(options: CompareOptions, number: int) -> Path:
    """Where the results of a model go: a folder of its own where there are several."""
    if len(options.models) == 1:
        return options.folder
    names = [Path(model.name).name or model.name for model in options.models]
    name = names[number]
    return options.folder / (name if names.count(name) == 1 else f"{name}-{number + 1}")


def check_engine(engine: str, arms: Sequence[Arm]) -> None:
    """InputError where an engine cannot apply one of the arms, before the first is asked."""
    if engine == "openai":
        raise InputError(
            "`engine` openai: a server decides itself what it applies, so that no arm can be chosen there; ask each "
            "server with `agci probe` and hold the results against each other with `agci evidence`."
        )
    rival = next((arm.word for arm in arms if arm.is_rival), None)
    if engine == "vllm" and rival is not None:
        raise InputError(
            f"`engine` vllm cannot apply {rival}: a rival {NEEDS_THE_MODEL}. Leave the arms of AGCI and its controls, "
            "or omit `engine`."
        )


class ArmResults(NamedTuple):
    """The arms that answered, and of each other one (by label) why it did not."""

    results: list[ArmResult]
    left_out: dict[str, str]


def ask_arms(options: CompareOptions, engine: Engine, folder: Path, data: ProbeData, say: Say) -> ArmResults:
    """Ask all rows with every arm, into `folder`; what is recorded already is not asked again.

    A method that cannot serve this model is named and left out. InputError where it is stock, where none is left, and
    for all that is no matter of the method: an engine that does not start, a result file of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: list[ArmResult] = []
    left_out: dict[str, str] = {}
    for arm in options.arms:
        try:
            results.append(_ask(options, engine, folder / arm.file_name, arm, data, say))
        except CannotServe as error:
            if arm.method == STOCK:
                raise
            left_out[arm.label] = str(error)
            say(f"{arm.label}: left out. {error}")
    if len(results) == 1:
        raise InputError(f"No method is left beside stock. {next(iter(left_out.values()))}")
    return ArmResults(results, left_out)


def _ask(  # noqa: PLR0917 - what an arm is asked with
    options: CompareOptions, engine: Engine, file: Path, arm: Arm, data: ProbeData, say: Say
) -> ArmResult:
    forms = dict.fromkeys(prompt_form(row) for rows in data.items.values() for row in rows)
    settings: dict[str, Any] = {"experiment": "position probe", "prompt": "".join(forms) or PROMPT, **data.settings}
    asked = QuestionSet(questions(data.items, data.img_path), data.bad_rows, settings, {"arm": arm.word})
    check_answers([file], data=data.source, negatives_file=data.negatives_file)
    answers = AnswerOptions(
        options.batch_size, method=arm.engine_method, run=options.run, method_options=arm.method_options
    )
    before, started = _memory_now(), time.process_time()
    summary = answer_questions(engine, asked, [arm.value], [file], answers)
    grown = _memory_peak() - before
    if summary.counts.rows:  # an arm that was there already keeps the cost that was measured when it was asked
        batch = _manifest(file)["settings"].get("batch_size") or 1
        # On a CPU its own time: that of the wall depends on what else the machine does.
        spent = 1000 * (time.process_time() - started) / summary.counts.rows
        here = engine.loaded if isinstance(engine, TransformersEngine) else None
        ms = spent if here is not None and here.device.type == "cpu" else _ms_per_row(file)
        cost = {"ms_per_row": ms, "kib_per_row": max(0.0, grown) / 1024 / batch if here is not None else None}
        write_json(file.with_suffix(".cost.json"), cost, indent=1)
    say(f"{arm.label}: {summary.lines()[0]}")
    failed = summary.counts.failed
    if failed:
        say(f"{arm.label}: {counted(len(failed), 'row')} skipped, for instance {failed[0].error}")
    return ArmResult(arm, file, *_cost(file), len(failed))


def _ms_per_row(file: Path) -> float | None:
    """Milliseconds per row, over all runs that the manifest has."""
    where = path_text(manifest.path_of(file))
    done = [(_rows(run, where), require_number(run, "seconds", where, 0)) for run in _manifest(file)["runs"]]
    rows = sum(number for number, _ in done)
    return 1000 * sum(seconds for number, seconds in done if number) / rows if rows else None


def _manifest(file: Path) -> dict[str, Any]:
    """The manifest of an arm that was asked; empty where somebody removed it since."""
    return manifest.read(file) or {"settings": {}, "runs": []}


def _rows(run: Mapping[str, Any], where: str) -> int:
    """The rows of a manifest's run: each engine's under its own name."""
    name = next((name for name in ("answers", "rows") if run.get(name)), None)
    return 0 if name is None else require_whole_number(run, name, where, 0)


def _cost(file: Path) -> tuple[float | None, float | None]:
    """What was measured when the arm was asked."""
    path = file.with_suffix(".cost.json")
    if not path.exists():
        return _ms_per_row(file), None
    found, where = read_json_object(path, "remove it"), path_text(path)
    ms, kib = (
        None if found.get(name) is None else require_number(found, name, where, 0)
        for name in ("ms_per_row", "kib_per_row")
    )
    return ms, kib


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _memory_now() -> float:
    """Bytes in use; from here on the peak is counted from zero, where the system can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return _process_bytes("VmRSS")


def _memory_peak() -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _process_bytes("VmHWM")


def _process_bytes(name: str) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
        return 1024.0 * int(line.split()[1])
    return 0.0
