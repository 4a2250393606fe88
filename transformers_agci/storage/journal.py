"""Files that survive a kill: append-only JSON Lines, and files that appear whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Journal:
    """Append-only JSON Lines. Opening it again cuts off a torn last line; what is left was written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Any] = []
        ends = [0]
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    record = _whole(line)
                    if record is None:
                        break
                    self.records.append(record)
                    ends.append(ends[-1] + len(line))
        self._ends = ends
        self._file = path.open("ab")
        self._file.truncate(ends[-1])

    def keep(self, count: int) -> None:
        """Forget the records after the first `count` (as opened)."""
        del self.records[count:], self._ends[count + 1 :]
        self._file.truncate(self._ends[-1])

    def append(self, record: Any) -> None:
        """Write one record through to the operating system. It is not added to `records`."""
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def write_whole(path: Path, parts: Iterable[bytes], unfinished: Path | None = None) -> None:
    """Write a file that appears under its name only when it is complete.

    Until then it is called `unfinished` (same file system; default: its name and ".part").
    """
    unfinished = unfinished or path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.writelines(parts)
    unfinished.replace(path)
