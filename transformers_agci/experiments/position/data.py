"""The position probe's data: a file of rows with its images, or composites that the embedded atlas makes."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers_agci.data.probe_rows import ProbeRow, read_probe_rows
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.position.questions import by_item
from transformers_agci.storage.atomic import cannot_write
from transformers_agci.storage.folder import committed_folder
from transformers_agci.storage.result_lines import FailedRow

ATLAS = "the embedded atlas"
WAIT_SECONDS = 600.0  # for the other processes of a torchrun, which draw the same set one after another


@dataclass(frozen=True)
class ProbeData:
    """Rows by item, the folder of their images, the rows that could not be read, and what the manifest says."""

    items: dict[str, list[ProbeRow]]
    img_path: Path
    bad_rows: list[FailedRow]
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = "rows"  # what a reader calls it: the file, the embedded atlas
    negatives_file: Path | None = None  # that was read too

    def __repr__(self) -> str:
        return f"<{counted(self.rows, 'row')}, {counted(len(self.items), 'item')} from {self.source}>"

    @property
    def rows(self) -> int:
        """Rows over all items."""
        return sum(len(rows) for rows in self.items.values())


def read_data(
    eval_file: Path,
    img_path: Path,
    negatives_file: Path | None = None,
    items: int | None = None,
    limit: int | None = None,
) -> ProbeData:
    """Read the rows of a probe file, and of its negatives, as items; at most `items` items and `limit` rows.

    Bad rows are listed, not raised; a missing or empty file is an InputError.
    """
    if not img_path.is_dir():
        raise InputError(f"`img_path`: there is no folder {img_path}; give the folder that holds the rows' images.")
    bad: list[FailedRow] = []

    def note(error: InputError) -> None:
        bad.append(FailedRow(len(bad), str(error).split(": ")[0], str(error)))

    rows: list[ProbeRow] = []
    settings: dict[str, Any] = {}
    for name, file in (("data_sha256", eval_file), ("negatives_sha256", negatives_file)):
        if file is not None:
            rows += read_probe_rows(file, note)
            settings[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    chosen = dict(list(by_item(rows).items())[:items])
    settings |= {"items": items, "limit": limit}
    return ProbeData(_first_rows(chosen, limit), img_path, bad, settings, str(eval_file), negatives_file)


def _first_rows(items: dict[str, list[ProbeRow]], limit: int | None) -> dict[str, list[ProbeRow]]:
    if limit is None:
        return items
    kept: dict[str, list[ProbeRow]] = {}
    for name, rows in items.items():
        if limit <= 0:
            break
        kept[name] = rows[:limit]
        limit -= len(kept[name])
    return kept


def embedded_data(folder: Path, items: int, seed: int, limit: int | None = None) -> ProbeData:
    """Composites of the embedded atlas, Yes and No rows, written to `folder` (kept when it holds the same already)."""
    from transformers_agci.embedded.probe_set import IMAGE_FOLDER, NEGATIVES_FILE, ROWS_FILE, build_probe_set

    doing = "drawing the probe set in"
    try:
        with committed_folder(folder, doing, replace=True, keep_equal=True, wait=WAIT_SECONDS) as made:
            assert made is not None
            build_probe_set(made, items, seed)
    except OSError as error:
        raise cannot_write(folder, error) from error
    data = read_data(folder / ROWS_FILE, folder / IMAGE_FOLDER, folder / NEGATIVES_FILE, limit=limit)
    return replace(data, source=ATLAS)
