"""From rows to blocks, and inside a block to batches that let the vision side run once per picture.

A block is a number of consecutive groups: a function of the input and the batch size only. Inside it, the questions
are sorted into slots. The distinct lists of pictures of a block are divided into columns of at most `batch_size`
lists; batch j of a column asks the j-th question about each list. So one ordered list of pictures comes back batch
after batch, and its recorded encoding can be replayed exactly as it was.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers_agci.inference.questions import Picture, Question


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
    """The batches about one ordered set of picture lists; a batch holds question numbers of the whole input."""

    batches: tuple[tuple[int, ...], ...]


def plan_blocks(questions: Sequence[Question], block_rows: int) -> list[Block]:
    """Cut the input into blocks of whole groups, each of at least `block_rows` rows (the last may have fewer).

    A group is a run of consecutive questions with one `group`; None stands alone.
    """
    blocks: list[Block] = []
    start = 0
    for at in range(1, len(questions) + 1):
        at_boundary = at == len(questions) or not _same_group(questions[at - 1], questions[at])
        if at_boundary and (at - start >= block_rows or at == len(questions)):
            blocks.append(Block(len(blocks), start, at))
            start = at
    return blocks


def _same_group(one: Question, other: Question) -> bool:
    return one.group is not None and one.group == other.group


def plan_columns(questions: Sequence[Question], numbers: Sequence[int], batch_size: int) -> list[Column]:
    """Arrange the questions with these numbers for batches of at most `batch_size`.

    Lists with more questions come first, so that a later batch is a beginning of the first one; then longer texts,
    so that a batch pads little. Questions without a picture and questions with another stop rule get columns of
    their own.
    """
    by_list: dict[Hashable, list[int]] = {}
    for number in numbers:
        question = questions[number]
        pictures: Hashable = picture_keys(question.pictures) or number
        by_list.setdefault((pictures, question.stop), []).append(number)
    kinds: dict[Hashable, list[list[int]]] = {}
    for asked in by_list.values():
        first = questions[asked[0]]
        kinds.setdefault((bool(first.pictures), first.stop), []).append(asked)
    columns: list[Column] = []
    for lists in kinds.values():
        ordered = sorted(lists, key=lambda asked: (-len(asked), -len(questions[asked[0]].text)))
        for share in _even(ordered, batch_size):
            depth = len(share[0])
            columns.append(Column(tuple(tuple(asked[slot] for asked in share if slot < len(asked))
                                        for slot in range(depth))))
    return columns


def picture_keys(pictures: Sequence[Picture]) -> tuple[Hashable, ...]:
    return tuple(picture.key for picture in pictures)


def _even(items: Sequence[list[int]], most: int) -> list[Sequence[list[int]]]:
    """Cut into as few shares of at most `most` as possible, of nearly equal length: 18 by 16 is 9 + 9."""
    shares = -(-len(items) // most)
    bounds = [len(items) * share // shares for share in range(shares + 1)]
    return [items[low:high] for low, high in pairwise(bounds)]
