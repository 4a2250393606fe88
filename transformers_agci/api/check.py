"""A probe or similarity set checked in Python: are the rows sound, the items whole, the images there?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_agci.api.arguments import checked
from transformers_agci.api.build import BuiltSet
from transformers_agci.api.rows import Displayed, tables_html
from transformers_agci.data.check import check
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.position.data import ATLAS, ProbeData
from transformers_agci.inference.progress import ticking
from transformers_agci.report.table import Table


@dataclass(frozen=True, eq=False, repr=False)
class DataCheck(Displayed):
    """What a check found: `errors` make the set unusable as it is, `notes` are worth knowing.

    files               the rows, and those of the answer No where they are a file of their own: all counts are of both
    positions, answers  how many rows have each
    sizes               (width, height) in pixels -> images of this size
    """

    files: tuple[Path, ...]
    rows: int
    items: int
    positions: Mapping[str, int]
    answers: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]  # of each file

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def text(self) -> str:
        """What `agci data check` prints, of one file after another."""
        each = zip(self.files, self.lines, strict=True)
        return "\n".join(part for file, lines in each for part in (str(file), *(f"  {line}" for line in lines)))

    def _repr_html_(self) -> str:
        rows = [[name, str(count)] for name, count in (*self.answers.items(), *self.positions.items())]
        title = "; ".join(f"{file}: {lines[0]}" for file, lines in zip(self.files, self.lines, strict=True))
        return tables_html([Table(title, ["rows", "n"], rows)], [line for lines in self.lines for line in lines[3:]])


@checked
def check_data(
    rows: str | Path | ProbeData | BuiltSet, img_path: str | Path | None = None, *, progress: bool = True
) -> DataCheck:
    """Check a probe or similarity set: counts, balance, nine rows per item, duplicates, and the images in `img_path`.

    `rows` is the file, or what `build_probe`, `composites` and `published_data` gave: then its images are known, and
    its file of negatives is checked too. A set that we built is also held against the hash in its manifest.

    >>> from transformers_agci import build_probe, check_data
    >>> checked = check_data(build_probe(kind="digits", items=2, canvas=252, progress=False), progress=False)
    >>> checked.passed, checked.rows, checked.answers["Yes"], checked.sizes
    (True, 36, 18, {(252, 252): 18})
    """
    files, folder = _files_of(rows, img_path)
    return run_check(files, folder, progress)


def run_check(files: Sequence[Path], img_path: Path | None, progress: bool = True) -> DataCheck:
    """A check as the command makes it, of one file after another. What several say alike stands once in the errors."""
    found = []
    for file in files:
        with ticking("image", progress) as tick:
            found.append(check(file, img_path, tick))
    sizes = Counter({image: size for each in found for image, size in each.image_sizes.items()}.values())
    return DataCheck(
        tuple(files),
        sum(each.rows for each in found),
        sum(each.items for each in found),
        dict(sum((each.positions for each in found), Counter())),
        dict(sum((each.answers for each in found), Counter())),
        dict(sizes),
        tuple(dict.fromkeys(error for each in found for error in each.errors)),
        tuple(dict.fromkeys(note for each in found for note in each.notes)),
        tuple(tuple(each.lines()) for each in found),
    )


def _files_of(rows: str | Path | ProbeData | BuiltSet, img_path: str | Path | None) -> tuple[list[Path], Path | None]:
    """The rows file, with that of the negatives where it is known, and the folder of their images."""
    if isinstance(rows, BuiltSet | ProbeData):
        if img_path is not None:
            raise InputError("`img_path` goes with a rows file; what a function of this package gave has its images.")
        if isinstance(rows, BuiltSet):
            return [rows.rows_file, *filter(None, [rows.negatives_file])], rows.img_path
        if rows.source == ATLAS:
            raise InputError("`rows`: there is no file to check, for these rows are made from the embedded atlas.")
        return [Path(rows.source), *filter(None, [rows.negatives_file])], rows.img_path
    if not isinstance(rows, str | Path):
        raise InputError(f"`rows` must be a rows file, or what `build_probe` gives, but is {short(rows)}.")
    return [Path(rows)], None if img_path is None else Path(img_path)
