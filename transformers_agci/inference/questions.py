"""What a model is asked: a text, its images, and when the answer is long enough."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from transformers_agci.data.images import open_image, resolve_below, visible_image
from transformers_agci.errors import InputError
from transformers_agci.storage.result_lines import FailedRow

ANSWER_WORDS = ("Yes", "No")


class ImageSource(Protocol):
    """Where the pixels come from. `open` may run in a worker process, so an image must survive pickling."""

    @property
    def key(self) -> Hashable:
        """Equal keys mean equal pixels: such images are encoded once per block."""

    def open(self) -> Image.Image:
        """The decoded RGB image; InputError (naming `where`) if it is missing or broken."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, `name` below the folder `root`; `where` ("probe.json:12") is the row that asked for it."""

    root: Path
    name: str
    where: str

    @property
    def key(self) -> Hashable:
        return (str(self.root), self.name)

    def open(self) -> Image.Image:
        return open_image(resolve_below(self.root, self.name, self.where), self.where)


@dataclass(frozen=True)
class ImageBytes:
    """An encoded image (JPEG, PNG, ...) held in memory, as parquet files have them."""

    data: bytes = field(repr=False)
    where: str

    @property
    def key(self) -> Hashable:
        return hashlib.sha256(self.data).digest()

    def open(self) -> Image.Image:
        return visible_image(self.data, f"{self.where}: the image in this row")


@dataclass(frozen=True)
class BlankImage:
    """One colour, `width` x `height` pixels: the control that keeps the image's tokens and takes its content."""

    width: int
    height: int
    colour: tuple[int, int, int] = (255, 255, 255)

    @property
    def key(self) -> Hashable:
        return (self.width, self.height, self.colour)

    def open(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), self.colour)


class StopRule(NamedTuple):
    """When a greedy answer is long enough: at the end token, at `max_new_tokens`, or earlier for a Yes/No answer.

    A Yes/No answer ends as soon as the scoring rule of the position probe cannot change its verdict any more
    (see `answer.verdict_is_fixed`): normally after its first token.
    """

    yes_no: bool
    max_new_tokens: int


YES_NO = StopRule(yes_no=True, max_new_tokens=128)


def up_to(max_new_tokens: int) -> StopRule:
    """Free text of at most `max_new_tokens` tokens."""
    if max_new_tokens < 1:
        raise InputError(f"An answer needs at least 1 token, but max_new_tokens is {max_new_tokens}.")
    return StopRule(yes_no=False, max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class Question:
    """One row of an experiment.

    row       the input row, echoed into the result
    where     file and line it came from, for messages: "probe.json:12"
    text      the user turn; the images stand before it unless it holds one `<image>` mark per image
    marks     False takes `<image>` for text, which a caption from the wild may hold
    images  in the order in which they are shown
    group     consecutive rows of one group (an item, an image) stay in one block
    stop      `YES_NO` or `up_to(max_new_tokens)`
    shown     what the result calls `qs`, where that differs from `text`
    """

    row: Mapping[str, Any]
    where: str
    text: str
    images: tuple[ImageSource, ...] = ()
    group: Hashable = None
    stop: StopRule = YES_NO
    shown: str | None = None
    marks: bool = True


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a run, and what its manifest says of them.

    bad_rows  rows that could not become a question; counted with those that fail when they are asked
    settings  what must be equal for a result file to go on: the data file's hash, the prompt
    notes     what the manifest only records
    omitted   rows outside the population, which are not asked
    """

    questions: Sequence[Question]
    bad_rows: Sequence[FailedRow] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    omitted: int = 0

    def __len__(self) -> int:
        return len(self.questions)
