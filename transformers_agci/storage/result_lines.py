"""The lines beside a result file, read back and checked: blocks in part files, skipped rows, rows of this input."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.errors import InputError, short
from transformers_agci.storage.journal import parsed_line, whole_lines

Row = Mapping[str, Any]


class FailedRow(NamedTuple):
    """A row without a result: its number in the input, file:line, and the reason."""

    row: int
    where: str
    error: str


class PartLine(NamedTuple):
    """A block in a part file: line `number` (from 1), bytes `start` up to `end`."""

    block: int
    rows: list[dict[str, Any]]
    failed: list[FailedRow]
    part: Path
    number: int
    start: int
    end: int

    def read_rows(self) -> list[dict[str, Any]]:
        """The block's rows as the file has them: a merge does not keep all blocks in memory."""
        with self.part.open("rb") as file:
            file.seek(self.start)
            rows: list[dict[str, Any]] = json.loads(file.read(self.end - self.start))["rows"]
        return rows


def part_lines(folder: Path, block_sizes: Sequence[int]) -> Iterator[PartLine]:
    """The whole blocks in the part files of a folder; a block of another size belongs to another number of rows."""
    for part in sorted(folder.glob("*.jsonl")):
        for line in whole_lines(part, dict):
            block, rows, failed = (line.content.get(name) for name in ("block", "rows", "failed"))
            known = [_failed_row(row) for row in failed] if isinstance(failed, list) else [None]
            if type(block) is not int or not _are_objects(rows) or None in known:
                raise InputError(
                    f"{part}:{line.number} is damaged: it is not a block of results; delete the line, and its block "
                    "is done again."
                )
            named = [row for row in known if row is not None]
            if 0 <= block < len(block_sizes) and len(rows) + len(named) == block_sizes[block]:
                yield PartLine(block, rows, named, part, line.number, line.start, line.end)


def read_failed(path: Path) -> dict[int, list[FailedRow]]:
    """The rows without a result by block, from A.bad.jsonl; empty where there is no such file.

    Raises InputError where it is damaged: without it nobody knows which input row a result belongs to.
    """
    failed: dict[int, list[FailedRow]] = {}
    if not path.exists():
        return failed
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        content = parsed_line(line)
        row = _failed_row(content)
        if row is None or type(content.get("block")) is not int:
            raise InputError(
                f"{path}:{number} is damaged: it does not name a row that was skipped. Restore the file, or give "
                "`overwrite` to start over."
            )
        failed.setdefault(content["block"], []).append(row)
    return failed


def _are_objects(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def check_in_blocks(path: Path, failed: Mapping[int, Sequence[FailedRow]], starts: Sequence[int]) -> None:
    """InputError where A.bad.jsonl names a row twice, or one that is not in its block.

    `starts` are the numbers of the blocks' first rows, with the number of all rows behind them.
    """
    for block, rows in failed.items():
        numbers = [row.row for row in rows]
        is_block = 0 <= block < len(starts) - 1
        if (
            not is_block
            or len(set(numbers)) < len(numbers)
            or not set(numbers) <= set(range(*starts[block : block + 2]))
        ):
            raise InputError(
                f"{path} is damaged: it names rows of block {block} that are not in it, or one of them twice. Restore "
                "the file, or give `overwrite` to start over."
            )


def _failed_row(content: Any) -> FailedRow | None:
    if not isinstance(content, dict):
        return None
    row, where, error = (content.get(name) for name in FailedRow._fields)
    if type(row) is not int or not isinstance(where, str) or not isinstance(error, str):
        return None
    return FailedRow(row, where, error)


def check_same_row(found: Row, expected: Row, place: str, number: int) -> None:
    """InputError where a result row at `place` ("A.jsonl:7") does not repeat row `number` (from 0) of the input."""
    for key, value in expected.items():
        there = found.get(key)
        if there != value and json.dumps(there) != json.dumps(value):
            raise InputError(
                f"{place} is not the result of row {number + 1} of the input: its {key} is {short(there)} and the "
                f"input's {short(value)}. Rows were swapped or changed; restore the file, or give `overwrite` to "
                "start over."
            )
