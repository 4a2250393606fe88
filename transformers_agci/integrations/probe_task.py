"""What a task of the position probe is made of, whoever runs it: its rows, and the figures of its answers."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_agci.data.images import resolve_below
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import ATLAS_ITEMS
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data
from transformers_agci.experiments.position.measures import AnswerReport, measure
from transformers_agci.experiments.position.questions import questions
from transformers_agci.experiments.position.results import read_results
from transformers_agci.statistics.evenness import signed_root

# Environment variables of programs whose tasks take no arguments.
EVAL_FILE, IMG_PATH, NEGATIVES, ITEMS = (
    "AGCI_PROBE_FILE",
    "AGCI_PROBE_IMAGES",
    "AGCI_PROBE_NEGATIVES",
    "AGCI_PROBE_ITEMS",
)
# What `figures` gives where both Yes and No rows were asked, and whether more is better.
FIGURES = {
    "items": True,
    **{
        f"{name}_{answer}": better
        for answer in ("yes", "no")
        for name, better in (
            ("accuracy", True),
            ("accuracy_low", True),
            ("accuracy_high", True),
            ("unreadable", False),
            ("unevenness", False),
        )
    },
    "balanced_accuracy": True,
    "d_prime": True,
}


@dataclass(frozen=True)
class TaskRow:
    """One question: the data file's row, its item (all rows of one target), its images' files, and what is asked."""

    fields: Mapping[str, Any]
    item: str
    images: tuple[Path, ...]
    text: str


@dataclass(frozen=True)
class TaskData:
    """The rows: of `eval_file` with its images, or of the embedded atlas where that is None."""

    eval_file: Path | None = None
    img_path: Path | None = None
    negatives_file: Path | None = None
    items: int | None = None

    @classmethod
    def from_environment(cls) -> "TaskData":
        """From AGCI_PROBE_FILE, AGCI_PROBE_IMAGES, AGCI_PROBE_NEGATIVES and AGCI_PROBE_ITEMS; none is needed."""
        file, images, negatives = (
            Path(os.environ[n]) if os.environ.get(n) else None for n in (EVAL_FILE, IMG_PATH, NEGATIVES)
        )
        items = os.environ.get(ITEMS, "")
        if items and not (items.isdecimal() and int(items) > 0):
            raise InputError(f"{ITEMS} must be a whole number of at least 1, but is {items[:40]!r}.")
        return cls(file, images, negatives, int(items) if items else None)

    def rows(self, drawn_in: Path) -> list[TaskRow]:
        """Every row, Yes and No; images of the atlas are drawn into the folder `drawn_in`.

        Raises InputError for a file that cannot be read, one without `img_path`, and one with bad rows, which another
        program could not name.
        """
        data = self._read(drawn_in)
        if data.bad_rows:
            raise InputError(f"{len(data.bad_rows)} bad rows; the first: {data.bad_rows[0].error}")
        every = [(item, row) for item, rows in data.items.items() for row in rows]
        asked = questions(data.items, data.img_path)
        return [
            TaskRow(
                row.fields,
                item,
                tuple(resolve_below(data.img_path, image, row.where) for image in row.images),
                question.text,
            )
            for (item, row), question in zip(every, asked, strict=True)
        ]

    def _read(self, drawn_in: Path) -> ProbeData:
        if self.eval_file is None:
            return embedded_data(drawn_in, self.items or ATLAS_ITEMS, 0, None)
        if self.img_path is None:
            raise InputError(f"{IMG_PATH} (`img_path`) is needed with {EVAL_FILE}: the folder that holds the images.")
        return read_data(self.eval_file, self.img_path, self.negatives_file, self.items, None)


def figures(answered: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The figures that `agci metrics` gives for result rows: data rows with their `prediction`.

    Accuracies in percent with their intervals over items; `unevenness` is the standard deviation of the accuracies over
    the cells in points, without the part that chance makes (below 0 where there is less than chance makes).
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answers.jsonl")
        file.write_text("".join(f"{json.dumps(dict(row))}\n" for row in answered), encoding="utf-8")
        report = measure(read_results(file))
    found: dict[str, float] = {"items": report.items}
    for name, side in (("yes", report.yes), ("no", report.no)):
        if side is not None:
            found |= _side(name, side)
    if report.balanced is not None:
        found["balanced_accuracy"] = 100 * report.balanced.estimate
    if report.d_prime is not None and report.d_prime.n:  # of readable replies
        found["d_prime"] = report.d_prime.estimate
    return found


def _side(name: str, side: AnswerReport) -> dict[str, float]:
    accuracy = side.accuracy
    found = {
        f"accuracy_{name}": 100 * accuracy.estimate,
        f"accuracy_low_{name}": 100 * accuracy.low,
        f"accuracy_high_{name}": 100 * accuracy.high,
        f"unreadable_{name}": side.unreadable,
    }
    if side.unevenness is not None:
        found[f"unevenness_{name}"] = 100 * signed_root(side.unevenness.estimate)
    return found
