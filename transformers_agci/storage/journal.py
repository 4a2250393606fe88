"""Append-only JSON Lines that survive a kill."""

import json
from pathlib import Path
from typing import Any

from transformers_agci.storage.json_file import json_bytes


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
        self._file.write(json_bytes(record, ascii_only=False))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
