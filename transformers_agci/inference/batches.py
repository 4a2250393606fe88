"""From rows to blocks, and inside a block to batches that let the vision side run once per image.

A block is a number of consecutive groups: a function of the input and the batch size only. Inside it, the questions
are sorted into slots. The distinct lists of images of a block are divided into columns of at most `batch_size`
lists with equally many questions; batch j of a column asks the j-th question about each list. So one ordered list of
images comes back batch after batch: its recorded encoding can be replayed exactly as it was, and so can the
decoder's work on it.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.inference.questions import ImageSource, Question

BATCH_SIZE = {"cpu": 9, "cuda": 18}  # image lists per forward call; the probe's items have nine images
BATCHES_PER_BLOCK = 4  # what a kill can cost, against how much there is to sort by length
LARGEST_BLOCK = 8  # times `block_rows`, however few images: what a kill can cost


@dataclass(frozen=True)
class Block:
    """Questions `start` up to, not including, `stop`; `index` counts the blocks of the input."""

    index: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Column:
    """The batches about one ordered set of image lists; a batch holds question numbers of the whole input."""

    batches: tuple[tuple[int, ...], ...]


class Plan(NamedTuple):
    """How the questions divide: a function of the input and the batch size only."""

    blocks: list[Block]
    batch_size: int
    block_rows: int


def make_plan(
    questions: Sequence[Question], device_type: str, batch_size: int | None = None, block_rows: int | None = None
) -> Plan:
    """Blocks for these questions; defaults by device."""
    size = BATCH_SIZE.get(device_type, BATCH_SIZE["cpu"]) if batch_size is None else batch_size
    if size < 1 or (block_rows is not None and block_rows < 1):
        raise InputError(f"A batch needs at least 1 row, but `batch_size` is {batch_size}, block_rows {block_rows}.")
    if block_rows is not None:
        return Plan(plan_blocks(questions, block_rows), size, block_rows)
    rows = size * BATCHES_PER_BLOCK
    return Plan(plan_blocks(questions, rows, lists=size), size, rows)


def plan_blocks(questions: Sequence[Question], block_rows: int, lists: int = 1) -> list[Block]:
    """Cut the input into blocks of whole groups, each of at least `block_rows` rows about at least `lists` different
    lists of images, so that with many questions per image a batch still has `lists` rows. The last may have fewer.

    A group is a run of consecutive questions with one `group`; None stands alone.
    """
    blocks: list[Block] = []
    start = 0
    seen: set[Hashable] = set()
    for at in range(1, len(questions) + 1):
        seen.add(_list_key(questions, at - 1))
        at_boundary = at == len(questions) or not _same_group(questions[at - 1], questions[at])
        rows = at - start
        full = rows >= block_rows and (len(seen) >= lists or rows >= LARGEST_BLOCK * block_rows)
        if at_boundary and (full or at == len(questions)):
            blocks.append(Block(len(blocks), start, at))
            start, seen = at, set()
    return blocks


def _same_group(one: Question, other: Question) -> bool:
    return one.group is not None and one.group == other.group


def plan_columns(
    questions: Sequence[Question],
    numbers: Sequence[int],
    batch_size: int,
    length: Callable[[str], int] = len,
) -> list[Column]:
    """Arrange the questions with these numbers for batches of at most `batch_size`.

    Longer texts come first, among the questions about a list and among the lists, so that a batch pads little; with
    the number of tokens as `length` most batches pad nothing, and their attention needs no mask.
    Questions without an image, with another stop rule, and lists with another number of questions get columns of
    their own.
    """
    by_list: dict[Hashable, list[int]] = {}
    for number in numbers:
        by_list.setdefault((_list_key(questions, number), questions[number].stop), []).append(number)

    def longest_first(number: int) -> int:
        return -length(questions[number].text)

    kinds: dict[Hashable, list[list[int]]] = {}
    for found in by_list.values():
        asked = sorted(found, key=longest_first)
        first = questions[asked[0]]
        kinds.setdefault((bool(first.images), first.stop, len(asked)), []).append(asked)
    return [
        Column(tuple(zip(*share, strict=True)))
        for lists in kinds.values()
        for share in _even(sorted(lists, key=lambda asked: longest_first(asked[0])), batch_size)
    ]


def _list_key(questions: Sequence[Question], number: int) -> Hashable:
    """The images of a question; a question without one is a list of its own."""
    return image_keys(questions[number].images) or number


def image_keys(images: Sequence[ImageSource]) -> tuple[Hashable, ...]:
    """What tells lists of images from each other."""
    return tuple(image.key for image in images)


def _even(items: Sequence[list[int]], most: int) -> list[Sequence[list[int]]]:
    """Cut into as few shares of at most `most` as possible, of nearly equal length: 18 by 16 is 9 + 9."""
    shares = -(-len(items) // most)
    bounds = [len(items) * share // shares for share in range(shares + 1)]
    return [items[low:high] for low, high in pairwise(bounds)]
