"""A probe or similarity set checked in Python: are the rows sound, the items whole, the images there?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers_agci.api.arguments import checked
from transformers_agci.api.build import BuiltSet
from transformers_agci.api.rows import Shown, tables_html
from transformers_agci.data.check import check
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.position.data import ATLAS, ProbeData
from transformers_agci.inference.progress import ticking
from transformers_agci.report.table import Table


@dataclass(frozen=True, eq=False, repr=False)
class DataCheck(Shown):
    """What a check found: `errors` make the set unusable as it is, `notes` are worth knowing.

    positions, answers  how many rows have each
    sizes               (width, height) in pixels -> images of this size
    """

    file: Path
    rows: int
    items: int
    positions: Mapping[str, int]
    answers: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def text(self) -> str:
        """What `agci data check` prints."""
        return "\n".join([str(self.file), *(f"  {line}" for line in self.lines)])

    def _repr_html_(self) -> str:
        rows = [[name, str(count)] for name, count in (*self.answers.items(), *self.positions.items())]
        return tables_html([Table(f"{self.file}: {self.lines[0]}", ["rows", "n"], rows)], self.lines[3:])


@checked
def check_data(
    rows: str | Path | ProbeData | BuiltSet, img_path: str | Path | None = None, *, progress: bool = True
) -> DataCheck:
    """Check a probe or similarity set: counts, balance, nine rows per item, duplicates, and the images in `img_path`.

    `rows` is the file, or what `build_probe`, `composites` and `published_data` gave, whose images are then known. A
    set that we built is also held against the hash in its manifest.

    >>> from transformers_agci import build_probe, check_data
    >>> checked = check_data(build_probe(kind="digits", items=2, canvas=252, progress=False), progress=False)
    >>> checked.passed, checked.rows, checked.answers["Yes"], checked.sizes
    (True, 18, 18, {(252, 252): 18})
    """
    file, folder = _files_of(rows, img_path)
    return run_check(file, folder, progress)


def run_check(file: Path, img_path: Path | None, progress: bool = True) -> DataCheck:
    """A check as the command makes it."""
    with ticking("image", progress) as tick:
        found = check(file, img_path, tick)
    counts = (dict(found.positions), dict(found.answers), dict(found.sizes))
    return DataCheck(
        file, found.rows, found.items, *counts, tuple(found.errors), tuple(found.notes), tuple(found.lines())
    )


def _files_of(rows: str | Path | ProbeData | BuiltSet, img_path: str | Path | None) -> tuple[Path, Path | None]:
    """The rows file and the folder of its images."""
    if isinstance(rows, BuiltSet | ProbeData):
        if img_path is not None:
            raise InputError("`img_path` goes with a rows file; what a function of this package gave has its images.")
        if isinstance(rows, BuiltSet):
            return rows.rows_file, rows.img_path
        if rows.source == ATLAS:
            raise InputError("`rows`: there is no file to check, for these rows are made from the embedded atlas.")
        return Path(rows.source), rows.img_path
    if not isinstance(rows, str | Path):
        raise InputError(f"`rows` must be a rows file, or what `build_probe` gives, but is {short(rows)}.")
    return Path(rows), None if img_path is None else Path(img_path)
