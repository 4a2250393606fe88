"""The ruler's run: freshly drawn items, asked under every condition by several processes, kept in a journal."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci.data.worker_processes import in_order
from transformers_agci.errors import InputError
from transformers_agci.experiments.ruler.conditions import CELLS, Condition
from transformers_agci.inference.progress import Progress
from transformers_agci.storage.journal import Journal
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.storage.settings import check_same_settings

if TYPE_CHECKING:
    from transformers_agci.experiments.ruler.measure import RulerModel

DIGITS = 5  # of a margin, behind the point
Margins = Mapping[str, np.ndarray]  # by condition: [items, 2 questions (Yes, No), cells]


@dataclass(frozen=True)
class ItemRun:
    """`items` items of the stream `stream`, each asked under `conditions`; the margins go to the journal `file`.

    `lam` is the strength of the methods. A run that was stopped goes on where its journal ends. One process is this
    one. `shown`: the progress.
    """

    file: Path
    stream: tuple[str | int, ...]
    items: int
    conditions: Sequence[Condition]
    lam: float
    processes: int
    shown: bool = True

    def margins(self, overwrite: bool = False) -> Margins:
        """Ask whatever is not recorded yet; returns the margins of all items."""
        with contextlib.ExitStack() as stack:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(self.file, "measuring into"))  # opening cuts off a torn line
                if overwrite:
                    self.file.unlink(missing_ok=True)
                journal = stack.enter_context(closing(Journal(self.file)))
            except OSError as error:
                raise InputError(f"`output_dir` {self.file.parent} cannot be written: {error.strerror}.") from error
            self._claim(journal)
            records = journal.records[1 : 1 + self.items]
            for number, record in enumerate(records):
                self._check(record, number)
            progress = Progress(self.items - len(records), self.shown, unit="item")
            with closing(progress):
                for record in self._asked(range(len(records), self.items)):
                    journal.append(record)
                    records.append(record)
                    progress.add(1)
        return {
            name: np.array([record["margins"][name] for record in records]).reshape(-1, 2, CELLS)
            for name in (condition.name for condition in self.conditions)
        }

    def _check(self, record: Any, number: int) -> None:
        """InputError where a line of the journal is not item `number` with all its margins."""
        names = [condition.name for condition in self.conditions]
        margins = record.get("margins") if isinstance(record, dict) else None
        whole = (
            isinstance(margins, dict)
            and record.get("item") == number
            and all(_is_table(margins.get(name)) for name in names)
        )
        if not whole:
            raise InputError(
                f"{self.file}:{number + 2} is not what the ruler writes there, the margins of item {number}; give "
                "`overwrite` to start over."
            )

    def settings(self) -> dict[str, Any]:
        """What must be equal for a journal to be continued; more items may be added to it."""
        from transformers_agci.embedded.location import embedded_model_path
        from transformers_agci.inference.checkpoint_files import fingerprint

        whole = [condition.name for condition in self.conditions if condition.needs_whole_prompts]
        return {
            "stream": "/".join(map(str, self.stream)),
            "conditions": [condition.name for condition in self.conditions],
            "lambda": self.lam,
            "weights_sha256": fingerprint(embedded_model_path()),
            # An earlier version let these continue the image's cache, where they are not what they are in a run.
            **({"whole_prompts": whole} if whole else {}),
        }

    def _claim(self, journal: Journal) -> None:
        """Write the settings at the journal's beginning, or compare them with those that are there."""
        settings = self.settings()
        if not journal.records:
            journal.append(settings)
            journal.records.append(settings)
        remedy = "Give another `output_dir`, or `overwrite` to start over."
        if not isinstance(journal.records[0], dict) or "stream" not in journal.records[0]:
            raise InputError(f"{self.file}:1 is damaged: the settings of the run are missing there. {remedy}")
        check_same_settings(f"{self.file} holds a run", journal.records[0], settings, remedy)

    def _asked(self, numbers: range) -> Iterator[dict[str, Any]]:
        """The records of these items in order."""
        if not numbers:
            return
        arguments = (self.stream, tuple(self.conditions), self.lam)
        if self.processes == 1:
            yield from _asked_here(arguments, numbers)
            return
        started = _Worker.start, arguments
        with closing(in_order(_Worker.ask, numbers, self.processes, "processes", started)) as records:
            yield from records


def _is_table(values: Any) -> bool:
    """Whether these are 2 questions x 9 cells of finite margins."""
    return (
        isinstance(values, list)
        and len(values) == 2 * CELLS
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )


def _asked_here(arguments: tuple[Any, ...], numbers: range) -> Iterator[dict[str, Any]]:
    """In this process, on one thread as in any other; the caller's threads are as they were between two items,
    and the level of the log when the run has ended."""
    import torch

    threads, log = torch.get_num_threads(), logging.getLogger("transformers_agci")
    level = log.level
    try:
        _Worker.start(*arguments)
        for number in numbers:
            torch.set_num_threads(1)
            record = _Worker.ask(number)
            torch.set_num_threads(threads)
            yield record
    finally:
        torch.set_num_threads(threads)
        log.setLevel(level)
        if hasattr(_Worker, "model"):
            del _Worker.model


class _Worker:
    """One process of the run: the model is loaded once."""

    model: "RulerModel"
    stream: tuple[str | int, ...]
    conditions: tuple[Condition, ...]

    @classmethod
    def start(cls, stream: tuple[str | int, ...], conditions: tuple[Condition, ...], lam: float) -> None:
        import torch

        from transformers_agci.experiments.ruler.measure import RulerModel

        torch.set_num_threads(1)
        logging.getLogger("transformers_agci").setLevel(logging.ERROR)  # a rival's notes stand below the table, once
        cls.model, cls.stream, cls.conditions = RulerModel(lam), stream, conditions

    @classmethod
    def ask(cls, number: int) -> dict[str, Any]:
        from transformers_agci.embedded.atlas import Atlas
        from transformers_agci.embedded.probe_set import render_item

        found = cls.model.margins(render_item(Atlas(), cls.stream, number), cls.conditions)
        return {
            "item": number,
            "margins": {name: np.round(table, DIGITS).ravel().tolist() for name, table in found.items()},
        }
