"""The answers of any model on a benchmark scored in Python, as its official program does: no model, no GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.api.arguments import checked, path_list, whole_number
from transformers_agci.api.rows import Displayed, Tabular, tables_html
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.declaration import Inputs
from transformers_agci.experiments.benchmarks.score_report import (
    CHOICES,
    Bootstrap,
    Scored,
    check_choices,
    figure_text,
    flat_figures,
    score_files,
    write_scored,
)
from transformers_agci.experiments.defaults import RESAMPLES
from transformers_agci.report.table import Table
from transformers_agci.storage.overlap import Named, refuse_overlap

Files = str | Path | Sequence[str | Path]


@dataclass(frozen=True, eq=False, repr=False)
class ScoredAnswers(Displayed, Tabular):
    """A score: its `figures` by name, and a row per answer. Shows itself as a table."""

    scored: Scored
    files: tuple[Path, ...] = ()  # of answers, which nothing is written over

    @property
    def figures(self) -> dict[str, Any]:
        """What the score's file says, unrounded: fractions 0..1, but percent where a name ends in _pct."""
        return self.scored.report

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per answer: what was read in it, what is right, whether it is."""
        return [dict(item.as_row()) for item in self.scored.score.items]

    @property
    def text(self) -> str:
        """What `agci score` prints."""
        return self.scored.text

    @checked
    def write_json(self, path: str | Path) -> None:
        """All figures to a file."""
        self._check_place(path)
        write_scored(self.scored, Path(path), None)

    @checked
    def write_items(self, path: str | Path) -> None:
        """One JSON line per answer to a file."""
        self._check_place(path)
        write_scored(self.scored, None, Path(path))

    def _check_place(self, path: str | Path) -> None:
        refuse_overlap([Named("path", Path(path))], [Named("answers", file) for file in self.files])

    def _repr_html_(self) -> str:
        rows = [[name, figure_text(name, value)] for name, value in flat_figures(self.scored.score.figures).items()]
        title = f"{self.scored.declared.title}: {self.scored.score.variant}"
        return tables_html([Table(title, ["figure", "value"], rows)], self.scored.score.notes)


@checked
def score(
    name: str,
    answers: Files,
    *,
    questions: Files = (),
    annotations: str | Path | None = None,
    problems: str | Path | None = None,
    splits: str | Path | None = None,
    split: str | None = None,
    judge: str | None = None,
    official: bool = False,
    against: Files = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ScoredAnswers:
    """Score the answers of any model on a benchmark: pope, textvqa, scienceqa, mmmu_pro, crpe or hallusionbench.

    `answers` are files in the official form, or result files of `benchmark`; `questions`, `annotations`, `problems`,
    `splits` and `split` what the benchmark needs beside them (eval/<Benchmark>/README.md). `judge`, of hallusionbench:
    auto, codes, replies or yes-no. `official` scores incomplete or repeated answers as the official program does.
    `against` are the answers of a second model: its paired difference, second minus first, is added.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from transformers_agci import score
    >>> folder = tempfile.TemporaryDirectory()
    >>> answers = Path(folder.name, "answers.jsonl")
    >>> asked = {"image_source": "1", "category": "random", "answer": "no"}
    >>> said = {"Is there a cat?": "No", "Is there a dog?": "Yes"}
    >>> rows = [{"question_id": text, "question": text, **asked, "prediction": said[text]} for text in said]
    >>> _ = answers.write_text("".join(json.dumps(row) + "\\n" for row in rows))
    >>> found = score("pope", answers, resamples=0)
    >>> found.to_pandas()["correct"].tolist()
    [True, False]
    """
    beside = {"annotations": annotations, "problems": problems, "splits": splits}
    paths = {label: None if given is None else Path(given) for label, given in beside.items()}
    choices = {"questions": path_list("questions", questions) or None, "split": split, "judge": judge, **paths}
    bootstrap = Bootstrap(whole_number("resamples", resamples, 0), whole_number("seed", seed, 0))
    if not (given := path_list("answers", answers)):
        raise InputError("`answers` is an empty list; name at least one file.")
    wanted = AnswersToScore(given, path_list("against", against), official)
    return run_score(name, wanted, choices, bootstrap)


class AnswersToScore(NamedTuple):
    """Files of answers, those of a second model, and whether incomplete ones count as the official program has it."""

    answers: Sequence[Path]
    against: Sequence[Path] = ()
    official: bool = False


def run_score(name: str, wanted: AnswersToScore, choices: Mapping[str, Any], bootstrap: Bootstrap) -> ScoredAnswers:
    """A score as the command makes it; what is None among the `choices` was not given."""
    given = {label: choices[label] for label in CHOICES if choices[label] is not None}
    check_choices(name, set(given))
    if "questions" in given:
        given["questions"] = tuple(given["questions"])

    def inputs(files: Sequence[Path]) -> Inputs:
        return Inputs(answers=tuple(files), official=wanted.official, **given)

    other = inputs(wanted.against) if wanted.against else None
    files = (*wanted.answers, *wanted.against)
    return ScoredAnswers(score_files(name, inputs(wanted.answers), other, bootstrap), files)
