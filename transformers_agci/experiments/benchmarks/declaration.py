"""What a benchmark is: how its rows are asked, how its answers are read, how they become figures."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.rows import Row, SourcedRow

Image = str | bytes  # a path below the image folder, or an image file's bytes
Sums = Mapping[str, Any]  # name of a part -> its sum over items: a float, or an array [resamples]

PROTOCOLS = ("official", "paper")
MODES = ("direct", "cot")


@dataclass(frozen=True)
class Prompt:
    """One row as the user's turn.

    Without a mark the images come before the text; with marks the k-th "<image>" stands for the k-th image.
    `question` is the text without the protocol's instruction. `group` names the image or item: rows of one group are
    asked together.
    """

    text: str
    question: str
    images: tuple[Image, ...]
    group: Hashable
    max_new_tokens: int


@dataclass(frozen=True)
class Item:
    """One scored answer.

    `parts` are numbers that add up over items and from which the headline figure follows: by default the score, and
    a count of one. `cluster` names the image, because answers about one image are not independent. `fields` are
    written to the items file as well.
    """

    id: Any
    parsed: Any
    gold: Any
    score: float  # 0..1
    cluster: Hashable
    key: Hashable
    parts: Mapping[str, float] = field(default_factory=dict)
    binary: bool = True  # right or wrong; False where the score has steps between
    fields: Row = field(default_factory=dict)

    @property
    def summed(self) -> Mapping[str, float]:
        """What is added up over items."""
        return self.parts or {"score": self.score, "count": 1.0}

    def as_row(self) -> Row:
        """The line of the items file."""
        verdict = {"correct": bool(self.score)} if self.binary else {"score": self.score}
        return {"id": self.id, "parsed": self.parsed, "gold": self.gold, **verdict, **self.fields}


@dataclass(frozen=True)
class Inputs:
    """The files and choices given to `agci score`; what a benchmark does not take stays empty."""

    answers: tuple[Path, ...]
    questions: tuple[Path, ...] = ()
    annotations: Path | None = None
    problems: Path | None = None
    splits: Path | None = None
    split: str = "test"
    judge: str = "auto"
    official: bool = False
    variant: str | None = None  # what a run knows better than the name of its result file
    partial: bool = False  # the answers of a run that was asked some questions only: missing ones are no error


@dataclass(frozen=True)
class Score:
    """What the answers are worth. `variant` names the population, as figures of two populations do not compare."""

    variant: str
    figures: Row  # the keys of the result file: fractions 0..1, but percent where a key ends in _pct
    items: Sequence[Item]
    notes: tuple[str, ...] = ()


class Rows(NamedTuple):
    """How the rows of questions are read and asked.

    Attributes:
        read: data file or folder, setting -> (where, row) of each question.
        prompt: row, protocol, mode -> the user's turn; None where the row is not in the protocol's population.
        looks_like: whether a row is one of this benchmark's questions or answers.
    """

    read: Callable[[Path, str | None], Sequence[SourcedRow]]
    prompt: Callable[[Row, str, str], Prompt | None]
    looks_like: Callable[[Row], bool]


@dataclass(frozen=True)
class Scoring:
    """How answers become figures.

    Attributes:
        score: the files and choices of a user -> the figures.
        headline: the figure that gets an interval.
        headline_of: sums of the items' parts -> that figure; None: the mean of the scores, in percent where the
            headline's name ends in _pct.
        options: what `agci score` takes beside `answers`.
    """

    score: Callable[[Inputs], Score]
    headline: str
    headline_of: Callable[[Sums], Any] | None = None
    options: tuple[str, ...] = ()

    def headline_from(self, sums: Sums) -> Any:
        """The headline of items from the sums of their parts."""
        if self.headline_of is not None:
            return self.headline_of(sums)
        mean = sums["score"] / sums["count"]
        return 100 * mean if self.headline.endswith("_pct") else mean


@dataclass(frozen=True)
class Benchmark:
    """The declaration that each file of this folder makes in `BENCHMARK`.

    Attributes:
        protocol: the default one.
        modes: ways to ask for an answer; the first is the default.
        settings: forms of the data set that are never mixed; the first is the default.
        folder: its name below a common data root, as in eval/; by default the title.
        images: where in the folder the images may lie; the first that exists is taken.
        annotations: a file of the folder that scoring needs.
        hub_id: the data set for the `datasets` library; None where it is plain files.
    """

    name: str
    title: str
    rows: Rows
    scoring: Scoring
    protocol: str = "official"
    modes: tuple[str, ...] = ("direct",)
    settings: tuple[str, ...] = ()
    folder: str = ""
    images: tuple[str, ...] = ("",)
    annotations: str | None = None
    hub_id: str | None = None

    @property
    def data_folder(self) -> str:
        """The name of its folder."""
        return self.folder or self.title
