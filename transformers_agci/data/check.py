"""Check a probe or similarity set: are the rows sound, the items whole, the images there?"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from transformers_agci.data.built_set import SUFFIX, read_manifest, set_hash
from transformers_agci.data.grid import Shape
from transformers_agci.data.images import image_size, resolve_below
from transformers_agci.data.probe_rows import ANSWERS, ProbeRow, cell_names, read_probe_rows
from transformers_agci.errors import InputError, counted, printable
from transformers_agci.storage.reading import is_file, is_folder


@dataclass
class CheckReport:
    """What a check found. `errors` make the set unusable as it is; `notes` are worth knowing."""

    rows: int = 0
    items: int = 0
    positions: Counter[str] = field(default_factory=Counter)
    shapes: Counter[Shape] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    image_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # image -> pixels, (width, height)
    images_checked: bool = False
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images have each size."""
        return Counter(self.image_sizes.values())

    def lines(self, errors_shown: int = 20) -> Iterator[str]:
        """The report as text."""
        shapes = sorted(self.shapes) or [(3, 3)]
        cells = " or ".join(str(r * c) for r, c in shapes)
        yield f"{counted(self.rows, 'row')}, {counted(self.items, 'item')} of {cells} rows"
        answers = sorted(self.answers, reverse=True) if set(self.answers) <= set(ANSWERS) else sorted(self.answers)
        yield "answers: " + ", ".join(f"{self.answers[answer]} {answer}" for answer in answers or ANSWERS)
        names = [name for shape in shapes for name in cell_names(shape)]
        yield "positions: " + ", ".join(f"{self.positions[name]} {name}" for name in names)
        if self.images_checked:
            sizes = ", ".join(f"{count} of {w}x{h}" for (w, h), count in self.sizes.most_common(5))
            rest = len(self.sizes) - 5
            more = f" and {counted(rest, 'other size')}" if rest > 0 else ""
            yield f"images: {sizes or 'none'}{more}"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"error: {printable(error)}" for error in self.errors[:errors_shown])
        hidden = len(self.errors) - errors_shown
        if hidden > 0:
            yield f"error: and {hidden} more"
        yield counted(len(self.errors), "error")


def check(
    path: Path, image_root: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Check the rows of a file and, with `image_root`, that every image is there and whole.

    Raises InputError only where nothing can be read at all.
    """
    report = CheckReport()
    rows = read_probe_rows(path, lambda error: report.errors.append(str(error)))
    report.rows = len(rows)
    report.positions.update(row.position for row in rows)
    report.shapes.update(row.shape for row in rows)
    if len(report.shapes) > 1:
        found = ", ".join(f"{counted(count, 'row')} of {r}x{c}" for (r, c), count in sorted(report.shapes.items()))
        report.errors.append(f"{path.name}: one set needs one grid, but has {found}.")
    report.answers.update(row.answer for row in rows)
    _check_items(rows, report)
    _check_duplicates(rows, report)
    if image_root is None:
        report.notes.append("the images were not checked: give `img_path`.")
    else:
        _check_images(rows, image_root, report, progress)
    _check_manifest(path, report)
    return report


def item_key(row: ProbeRow) -> tuple[str, str]:
    """What the rows of an item share: the image's name without its _k, and the answer (a choice has several)."""
    return re.sub(r"_\d+(?=\.\w+$)", "", row.image), "" if row.options else row.answer


def _check_items(rows: Sequence[ProbeRow], report: CheckReport) -> None:
    seen = set()
    for key, group in groupby(rows, item_key):
        item = list(group)
        report.items += 1
        name = f"{item[0].where}: the item {key[0]}"
        if key in seen:
            report.errors.append(f"{name} has been before: the rows of an item must stand together.")
        elif sorted(row.cell for row in item) != list(range(math.prod(item[0].shape))):
            held = ", ".join(row.position for row in item[:12])
            report.errors.append(f"{name} must have each of the {_cells(item[0].shape)} once, but has: {held}.")
        seen.add(key)


def _cells(shape: Shape) -> str:
    return "nine positions" if shape == (3, 3) else f"{math.prod(shape)} cells"


def _check_duplicates(rows: Sequence[ProbeRow], report: CheckReport) -> None:
    for what, values in (
        ("id", [(row.id, row.answer) for row in rows]),
        ("question", [(row.image, row.caption) for row in rows]),
    ):
        first: dict[object, str] = {}
        for row, value in zip(rows, values, strict=True):
            if value in first:
                report.errors.append(f"{row.where}: the {what} {value[0]} stands in {first[value]} already.")
            first.setdefault(value, row.where)
    items_by_caption = Counter(caption for caption, _ in {(row.caption, item_key(row)) for row in rows})
    repeated = sum(count > 1 for count in items_by_caption.values())
    if repeated:
        be = "is" if repeated == 1 else "are"
        report.notes.append(f"{counted(repeated, 'caption')} {be} asked for in more than one item.")


def _check_images(
    rows: Sequence[ProbeRow], root: Path, report: CheckReport, progress: Callable[[int, int], None] | None
) -> None:
    report.images_checked = True
    if not is_folder(root):
        raise InputError(f"There is no image folder {root}: give `img_path` the folder of the images.")
    first_use = {image: row.where for row in reversed(rows) for image in row.images}
    for number, (image, where) in enumerate(sorted(first_use.items()), 1):
        try:
            report.image_sizes[image] = image_size(resolve_below(root, image, where), where)
        except InputError as error:
            report.errors.append(str(error))
        if progress:
            progress(number, len(first_use))


def _check_manifest(path: Path, report: CheckReport) -> None:
    """A set that we built says by its hash whether it is still what was built."""
    manifest_file = path.with_name(path.name.removesuffix(".json").removesuffix("_negatives") + SUFFIX)
    if is_file(manifest_file):
        manifest = read_manifest(manifest_file)
        if set_hash(path.parent, manifest) == manifest["sha256"]:
            report.notes.append(f"every byte is as {manifest_file.name} says.")
        else:
            report.errors.append(f"the set is not what {manifest_file.name} says: files were changed or are missing.")
