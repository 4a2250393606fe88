"""The rows that occlusion, similarity and flow take: positives, since a negative has no target to look for."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import DRAW_SEED, DRAWN_ITEMS
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data
from transformers_agci.storage.reading import with_a_name
from transformers_agci.storage.result_lines import FailedRow


class Positives(NamedTuple):
    """Yes rows by item in file order, the image folder, unreadable rows, and what the manifest compares."""

    items: dict[str, list[ProbeRow]]
    img_path: Path
    bad_rows: list[FailedRow]
    settings: dict[str, Any]
    negatives: int  # rows omitted

    @property
    def rows(self) -> list[ProbeRow]:
        """All rows, item after item."""
        return [row for rows in self.items.values() for row in rows]


def read_positives(eval_file: Path, img_path: Path) -> Positives:
    """The Yes rows of a probe or similarity file. InputError where the file or folder is missing, or all say No."""
    return only_positives(read_data(eval_file, img_path), str(eval_file))


@dataclass(frozen=True)
class RowsOptions:
    """Which rows: those of a file with the folder of their images, or items that the embedded atlas makes.

    items  of a file: how many are drawn; of the atlas: how many are made
    seed   of the draw, or of the atlas's items
    """

    eval_file: Path | None
    img_path: Path | None
    items: int
    seed: int
    data: ProbeData | None = None  # instead of all that: rows that were read already

    @property
    def source(self) -> str:
        """The file or the atlas, in words."""
        return str(self.eval_file or ("the embedded atlas" if self.data is None else self.data.source))

    def file_and_images(self) -> tuple[Path, Path] | None:
        """The file and its folder of images; None for the atlas. InputError where only one of them is given."""
        if self.eval_file is None:
            if self.img_path is not None:
                raise InputError("`img_path` belongs to `eval_file`; without it the embedded atlas makes the images.")
            return None
        if self.img_path is None:
            raise InputError("`img_path` is needed with `eval_file`: the folder that holds the rows' images.")
        return self.eval_file, self.img_path

    def notes(self, img_path: Path) -> dict[str, Any]:
        """What the manifest records of it."""
        file = None if self.eval_file is None else str(self.eval_file)
        return {"eval_file": file, "img_path": str(img_path), "items": self.items, "seed": self.seed}


def probe_positives(options: RowsOptions, output_dir: Path) -> Positives:
    """The Yes rows of a probe file, or of the embedded atlas, which draws into a folder beside `output_dir`."""
    if options.data is not None:
        return only_positives(options.data, options.source)
    found = options.file_and_images()
    if found is not None:
        return read_positives(*found)
    output_dir = with_a_name(output_dir)
    folder = output_dir.with_name(f"{output_dir.name}.probe_set")
    return only_positives(embedded_data(folder, options.items, options.seed), options.source)


def only_positives(data: ProbeData, source: str) -> Positives:
    """The Yes rows of probe data; InputError (naming `source`) where all say No."""
    items = {name: [row for row in rows if row.answer == "Yes"] for name, rows in data.items.items()}
    items = {name: rows for name, rows in items.items() if rows}
    if data.rows and not items:
        raise InputError(f"{source} holds only rows whose answer is No; give the file of the positives.")
    for rows in items.values():
        for row in rows:
            row.check_published_form()
    kept = sum(map(len, items.values()))
    settings = {"data_sha256": data.settings["data_sha256"]}
    return Positives(items, data.img_path, data.bad_rows, settings, data.rows - kept)


def check_unique(rows: Sequence[ProbeRow], what: str, of: Sequence[str]) -> None:
    """InputError naming two rows for which `of` (one text per row, called `what`) is the same."""
    seen: dict[str, ProbeRow] = {}
    for row, name in zip(rows, of, strict=True):
        if name in seen:
            raise InputError(
                f"{row.where}: the {what} {name} is used twice, first at {seen[name].where}; their "
                "results could not be told apart. Give every row its own."
            )
        seen[name] = row


def draw_items(items: Mapping[str, list[ProbeRow]], number: int = DRAWN_ITEMS, seed: int = DRAW_SEED) -> list[ProbeRow]:
    """The rows of `number` items drawn at random (all where there are not more), item after item."""
    names = list(items)
    chosen = names if len(names) <= number else random.Random(seed).sample(names, number)
    return [row for name in chosen for row in items[name]]
