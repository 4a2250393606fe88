"""The rows that occlusion, similarity and flow take: positives, since a negative has no target to look for."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.data import ProbeData, embedded_data, read_data
from transformers_agci.storage.result_lines import FailedRow

ITEMS, SEED = 20, 1  # the paper's draw


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


def probe_positives(
    eval_file: Path | None, img_path: Path | None, output_dir: Path, items: int, seed: int
) -> Positives:
    """The Yes rows of a probe file, or `items` items of the embedded atlas, drawn into a folder beside `output_dir`."""
    if eval_file is None:
        if img_path is not None:
            raise InputError("`img_path` belongs to `eval_file`; without it the embedded atlas makes the images.")
        folder = output_dir.with_name(f"{output_dir.name}.probe_set")
        return only_positives(embedded_data(folder, items, seed), "the embedded atlas")
    if img_path is None:
        raise InputError("`img_path` is needed with `eval_file`: the folder that holds the rows' images.")
    return read_positives(eval_file, img_path)


def only_positives(data: ProbeData, source: str) -> Positives:
    """The Yes rows of probe data; InputError (naming `source`) where all say No."""
    items = {name: [row for row in rows if row.answer == "Yes"] for name, rows in data.items.items()}
    items = {name: rows for name, rows in items.items() if rows}
    if data.rows and not items:
        raise InputError(f"{source} holds only rows whose answer is No; give the file of the positives.")
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


def draw_items(items: Mapping[str, list[ProbeRow]], number: int = ITEMS, seed: int = SEED) -> list[ProbeRow]:
    """The rows of `number` items drawn at random (all where there are not more), item after item."""
    names = list(items)
    chosen = names if len(names) <= number else random.Random(seed).sample(names, number)
    return [row for name in chosen for row in items[name]]
