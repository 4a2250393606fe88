"""What a benchmark is: how its rows are asked, how its answers are read, how they become figures."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

    `parts` are numbers that add up over items and from which the headline figure follows; `cluster` names the
    image, because answers about one image are not independent. `fields` are written to the items file as well.
    """

    id: Any
    parsed: Any
    gold: Any
    score: float  # 0..1
    cluster: Hashable
    key: Hashable
    parts: Mapping[str, float]
    binary: bool = True  # right or wrong; False where the score has steps between
    fields: Row = field(default_factory=dict)

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


@dataclass(frozen=True)
class Benchmark:
    """The declaration that each file of this folder makes in `BENCHMARK`."""

    name: str
    title: str
    score_options: tuple[str, ...]  # options of `agci score` beside `answers`
    headline: str  # the figure that gets an interval
    headline_of: Callable[[Sums], Any]
    score: Callable[[Inputs], Score]
    looks_like: Callable[[Row], bool]  # a row of this benchmark's questions or answers
    read_questions: Callable[[Path, str | None], Sequence[SourcedRow]]  # (where, row) of a data file or folder; setting
    build_prompt: Callable[
        [Row, str, str], Prompt | None
    ]  # row, protocol, mode; None: not in the protocol's population
    protocol: str = "official"  # the default
    modes: tuple[str, ...] = ("direct",)
    settings: tuple[str, ...] = ()  # forms of the data set that are never mixed; the first is the default
    folder: str = ""  # its name below a common data root, as in eval/
    images: tuple[str, ...] = ("",)  # where in the folder the images may lie; the first that exists is taken
    annotations: str | None = None  # a file of the folder that scoring needs
    hub_id: str | None = None  # the data set for the `datasets` library; None where it is plain files


def mean_score(sums: Sums) -> Any:
    """The headline of most benchmarks: the mean of the scores, 0..1."""
    return sums["score"] / sums["count"]


def mean_score_pct(sums: Sums) -> Any:
    """The mean of the scores in percent."""
    return 100 * mean_score(sums)


def counted(score: float) -> dict[str, float]:
    """The parts that `mean_score` needs."""
    return {"score": float(score), "count": 1.0}
