"""How the files beside a result file are called, and how a job array shares out its blocks."""

from dataclasses import dataclass
from pathlib import Path

from transformers_agci.errors import InputError, short
from transformers_agci.storage.reading import with_a_name


def base_path(path: Path) -> Path:
    """The path without a .jsonl or .json ending: what its siblings are named after."""
    return path.with_suffix("") if path.suffix in (".jsonl", ".json") else path


def sibling_path(path: Path, ending: str) -> Path:
    """A file that belongs to a result file: sibling_path("A.jsonl", ".manifest.json") is A.manifest.json."""
    path = with_a_name(path)
    return path.with_name(base_path(path).name + ending)


@dataclass(frozen=True)
class Shard:
    """This process is number `index` (from 0) of `count`; it does the blocks whose number % count is `index`."""

    index: int
    count: int

    def owns(self, block: int) -> bool:
        """Whether the block is this shard's."""
        return block % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Read "0/4" ... "3/4".

    >>> parse_shard("1/4")
    Shard(index=1, count=4)
    """
    index, _, count = text.partition("/")
    numbers = all(number.isascii() and number.isdecimal() and len(number) < 10 for number in (index, count))
    if not numbers or int(index) >= int(count):
        raise InputError(f"`shard` must be i/n with 0 <= i < n (the first of four is 0/4), but it is {short(text)}.")
    return Shard(int(index), int(count))
