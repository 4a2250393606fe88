"""The fine-tuning study in Python: the embedded model tuned with lambda 0 and 0.5, equal otherwise, and probed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, whole_number
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.rows import Displayed, tables_html
from transformers_agci.experiments.defaults import STUDY_ITEMS, STUDY_SEEDS, STUDY_STEPS
from transformers_agci.experiments.study.run import Study
from transformers_agci.experiments.study.table import StudyReport, study_report, write_study
from transformers_agci.inference.progress import Say


@dataclass(frozen=True, eq=False, repr=False)
class StudyRun(Displayed, StudyReport):
    """A study that was run: `levels` of every condition, their paired `differences`, a forest plot by `figure()`."""

    file: Path = Path("study.md")
    log: tuple[str, ...] = ()
    _kept: Any = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        return tables_html([self.levels, self.differences], [self.main_difference])


@checked
def study(
    seeds: int = STUDY_SEEDS,
    steps: int = STUDY_STEPS,
    items: int = STUDY_ITEMS,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
) -> StudyRun:
    """Fine-tune the embedded model at lambda 0 and 0.5 over several seeds, probe each at both, and compare.

    `steps` of 8 rows each; `items` fresh items are probed. The defaults take a quarter of an hour of an idle core. With
    a `folder` the same call goes on after an interruption, and more seeds can be added. Needs the extra [train].

    >>> from transformers_agci import study
    >>> found = study(seeds=1, steps=1, items=2, progress=False)
    >>> len(found.levels.rows), list(found.changes)[0]
    (6, 'lambda in training (mean of both evaluations)')
    """
    place, lines = place_of(folder), list[str]()
    wanted = Study(
        place.folder,
        whole_number("seeds", seeds),
        whole_number("steps", steps),
        whole_number("items", items),
        progress=progress,
    )
    return replace(run_study(wanted, quiet(lines)), log=tuple(lines), _kept=place.kept)


def run_study(study: Study, say: Say) -> StudyRun:
    """A study as the command runs it; `say` takes what a user reads while it goes on."""
    study.run(say)
    report = study_report(study)
    return StudyRun(**vars(report), file=write_study(report))
