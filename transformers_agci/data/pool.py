"""The pool: a source's accepted pairs, each decoded once and kept in the size of its cell."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from transformers_agci.data.grid import Grid
from transformers_agci.data.screening import Cell, Dropped, Fingerprint, Seen, screen
from transformers_agci.data.sources import Pair, Source, read_pairs
from transformers_agci.errors import InputError
from transformers_agci.storage.journal import Journal
from transformers_agci.storage.reading import path_text

CELLS = "cells.bin"
RECORDS = "pool.jsonl"
FINGERPRINT = re.compile(r"[0-9a-f]{400}")  # 8 bytes of the hash, 192 of the miniature
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class PoolPair(NamedTuple):
    """An accepted pair: the stem of its files, its caption, and where its cell's RGB bytes lie in the cells file."""

    key: str
    caption: str
    offset: int  # bytes
    size: tuple[int, int]  # pixels, (width, height)

    @property
    def end(self) -> int:
        return self.offset + 3 * self.size[0] * self.size[1]

    def image(self, cells: Path) -> Image.Image:
        """The cell's image; one read, no decoding."""
        with cells.open("rb") as file:
            file.seek(self.offset)
            return Image.frombytes("RGB", self.size, file.read(self.end - self.offset))


class Drop(NamedTuple):
    """A pair that was left out, as the file of dropped pairs names it."""

    pair: int
    key: str | None
    reason: str
    detail: str


class Pool(NamedTuple):
    """What a source gave: the accepted pairs in its order, how many were dropped and why, all dropped pairs."""

    pairs: list[PoolPair]
    dropped: Counter[str]
    cells: Path
    records: Path

    def drops(self) -> Iterator[Drop]:
        """The dropped pairs, in the source's order."""
        journal = Journal(self.records)
        journal.close()
        return (Drop(*record["drop"]) for record in _checked(journal) if "drop" in record)


def pool_colours(pool: Pool) -> np.ndarray:
    """[pairs, 192] the miniature of every accepted pair, from the records."""
    journal = Journal(pool.records)
    journal.close()
    hashes = [record["fingerprint"] for record in _checked(journal) if "pair" in record]
    return np.stack([Fingerprint.from_hex(text).colours for text in hashes])


def fill_pool(folder: Path, source: Source, wanted: int, grid: Grid, background: str) -> Pool:
    """Read pairs from the source until `wanted` are accepted or it ends.

    Cells and records are kept in `folder`; called again after an interruption it goes on behind the last record.
    """
    cells = folder / CELLS
    journal = Journal(folder / RECORDS)
    cells.touch()
    _cut_to_whole_cells(journal, cells)
    pool, seen, finished = _remembered(journal, cells)
    if not finished:
        pairs = read_pairs(source, skip=len(journal.records)) if len(pool.pairs) < wanted else iter(())
        journal.records.clear()
        with cells.open("ab") as file:
            file.truncate(_end(pool))
            notes = _Notes(pool, seen, journal, file)
            for pair in pairs:
                notes.add(pair, screen(pair, seen, grid, background))
                if len(pool.pairs) == wanted:
                    break
        journal.append({"end": len(pool.pairs)})
    journal.close()
    return pool


@dataclass(frozen=True)
class _Notes:
    """Where the outcome of a screening goes: the cell first, then the record that says it is whole."""

    pool: Pool
    seen: Seen
    journal: Journal
    cells: IO[bytes]

    def add(self, pair: Pair, outcome: Cell | Dropped) -> None:
        if isinstance(outcome, Dropped):
            self.pool.dropped[outcome.reason] += 1
            self.journal.append({"drop": Drop(pair.number, pair.key, *outcome)})
            return
        key = _unique_key(pair, self.seen)
        self.seen.add(key, pair.caption, outcome.fingerprint)
        accepted = PoolPair(key, pair.caption, _end(self.pool), outcome.image.size)
        self.cells.write(outcome.image.tobytes())
        self.cells.flush()
        self.pool.pairs.append(accepted)
        self.journal.append({"pair": accepted, "fingerprint": outcome.fingerprint.hex()})


def _end(pool: Pool) -> int:
    return pool.pairs[-1].end if pool.pairs else 0


def _checked(journal: Journal) -> list[dict[str, Any]]:
    """The records; InputError where one is none of ours."""
    for number, record in enumerate(journal.records, 1):
        if not isinstance(record, dict) or not any(key in record and right(record) for key, right in _FORM.items()):
            raise InputError(
                f"{path_text(journal.path)}:{number} is damaged: it is no record of an image that was read; give "
                "`overwrite` to start over."
            )
    return journal.records


def _is_pair(record: dict[str, Any]) -> bool:
    """Whether it is an accepted pair whose cell is of bearable size, with its fingerprint."""
    pair, text = record["pair"], record.get("fingerprint")
    if not isinstance(pair, list) or len(pair) != len(PoolPair._fields):
        return False
    key, caption, offset, size = pair
    is_size = isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 1 << 15 for n in size)
    is_key = isinstance(key, str) and key != "" and Path(key).name == key
    is_hash = isinstance(text, str) and FINGERPRINT.fullmatch(text) is not None
    return is_key and isinstance(caption, str) and type(offset) is int and offset >= 0 and is_size and is_hash


def _is_drop(record: dict[str, Any]) -> bool:
    drop = record["drop"]
    return isinstance(drop, list) and len(drop) == len(Drop._fields) and isinstance(drop[2], str)


_FORM: dict[str, Callable[[dict[str, Any]], bool]] = {
    "pair": _is_pair,
    "drop": _is_drop,
    "end": lambda record: type(record["end"]) is int,
}


def _pool_pair(record: dict[str, Any]) -> PoolPair:
    key, caption, offset, size = record["pair"]
    return PoolPair(key, caption, offset, (size[0], size[1]))


def _cut_to_whole_cells(journal: Journal, cells: Path) -> None:
    """Drop the records behind the first one whose cell the cells file does not hold whole."""
    there = cells.stat().st_size
    for number, record in enumerate(_checked(journal)):
        if "pair" in record and _pool_pair(record).end > there:
            journal.keep(number)
            return


def _remembered(journal: Journal, cells: Path) -> tuple[Pool, Seen, bool]:
    pool, seen = Pool([], Counter(), cells, journal.path), Seen()
    finished = False
    for record in journal.records:
        if "pair" in record:
            pool.pairs.append(_pool_pair(record))
            seen.add(pool.pairs[-1].key, pool.pairs[-1].caption, Fingerprint.from_hex(record["fingerprint"]))
        elif "drop" in record:
            pool.dropped[Drop(*record["drop"]).reason] += 1
        else:
            finished = True
    return pool, seen, finished


def _unique_key(pair: Pair, seen: Seen) -> str:
    """The source's own key where it can be a file name, else the pair's number; never one that is taken."""
    key = pair.key if pair.key and FILE_NAME.fullmatch(pair.key) else f"{pair.number:09d}"
    while seen.has_key(key):
        key = f"{key}-{pair.number}"
    return key
