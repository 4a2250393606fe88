"""A lambda chosen on some items and reported on others, and the items that an effect needs, from results in Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_agci.api.arguments import checked, one_of
from transformers_agci.api.results import ProbeRun, as_results
from transformers_agci.api.rows import Displayed, tables_html
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import CHOOSE_BY, DEV_SHARE, Choice
from transformers_agci.experiments.position import sweep as sweeping
from transformers_agci.experiments.position import sweep_report
from transformers_agci.experiments.position.sweep import NestedSweep, Sweep
from transformers_agci.experiments.position.sweep_report import ItemPlan, plan_items
from transformers_agci.experiments.position.tables import differences

Results = ProbeRun | str | Path | Sequence[str | Path]


@dataclass(frozen=True, eq=False, repr=False)
class ChosenLambda(Displayed):
    """What a sweep found: of one split, or of five folds. Shows itself as tables."""

    found: Sweep | NestedSweep
    sources: tuple[Path, ...]

    @property
    def chosen(self) -> str | list[str]:
        """The label of the chosen result, of each fold where there are folds."""
        return self.found.chosen

    @property
    def text(self) -> str:
        """What `agci sweep` prints."""
        return sweep_report.sweep_text(self.found)

    @checked
    def write_json(self, path: str | Path) -> None:
        """All numbers to a file, and the split and the hashes of what was read to the manifest beside it."""
        sweep_report.write_sweep(self.found, path, self.sources)

    def _repr_html_(self) -> str:
        if isinstance(self.found, NestedSweep):
            return tables_html([], sweep_report.nested_text(self.found).split("\n\n"))
        scores, pair = sweep_report.scores_table(self.found), self.found.pair
        if pair is None:
            return tables_html([scores], [sweep_report.BASELINE_CHOSEN, *self.found.notes])
        return tables_html([scores, differences(pair)], [pair.verdict, *self.found.notes])


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Displayed, ItemPlan):
    """How many items show an effect, by power. Shows itself as a table."""

    def _repr_html_(self) -> str:
        return tables_html([self.table], [self.source])


@checked
def sweep(
    results: Results,
    held_out: Results = (),
    *,
    choose_by: Choice = CHOOSE_BY,
    dev_share: float | None = None,
    nested: bool = False,
) -> ChosenLambda:
    """Choose a lambda (or any of several results) on some items, and compare it with the first result on the others.

    `results` is a run of `probe` at several lambdas, or its files, the baseline first. The items are split by a hash of
    their captions, `dev_share` of them (0.5) choose; `held_out` are results of another data set that report instead,
    one per result; `nested` takes five folds. `choose_by`: balanced, auc or evenness.

    >>> import json, random, tempfile
    >>> from pathlib import Path
    >>> from transformers_agci import sweep
    >>> from transformers_agci.data.grid import POSITIONS
    >>> folder, draw = tempfile.TemporaryDirectory(), random.Random(0)
    >>> files = [Path(folder.name, f"{name}.jsonl") for name in ("baseline", "method")]
    >>> for file, often in zip(files, (0.6, 0.9)):  # answers that are right so often
    ...     with file.open("w") as lines:
    ...         for item in range(60):
    ...             for place, position in enumerate(POSITIONS):
    ...                 for answer, wrong in (("Yes", "No"), ("No", "Yes")):
    ...                     said = answer if draw.random() < often else wrong
    ...                     row = {"image": f"{item:05d}_{place}.jpg", "caption": f"thing {item}", "position": position}
    ...                     print(json.dumps({**row, "answer": answer, "prediction": said}), file=lines)
    >>> found = sweep(files)
    >>> found.chosen, found.found.pair.items
    ('method', 37)
    """
    one_of("choose_by", choose_by, Choice)
    run, apart = as_results("results", results), as_results("held_out", held_out)
    if nested and apart.files:
        raise InputError("`nested` reports on the items of `results`; omit it or `held_out`.")
    _check_dev_share(dev_share, nested, bool(apart.files))
    found: Sweep | NestedSweep
    if nested:
        found = sweeping.nested(run.results, choose_by)
    elif apart.files:
        notes = sweeping.check_paired(run.files, apart.files)
        found = sweeping.sweep_apart(run.results, apart.results, choose_by)
        found.notes.extend(notes)
    else:
        found = sweeping.sweep(run.results, choose_by, DEV_SHARE if dev_share is None else float(dev_share))
    sources = (*run.files, *(path for path in run.negatives if path), *apart.files)
    return ChosenLambda(found, sources)


def _check_dev_share(dev_share: float | None, nested: bool, apart: bool) -> None:
    """InputError for a share that is none, and for one where nothing is split by it."""
    if dev_share is None:
        return
    sweeping.check_share(float(dev_share))
    if nested or apart:
        why = "`nested` chooses on four of five folds" if nested else "with `held_out` all items of `results` choose"
        raise InputError(f"`dev_share` splits the items of `results`, but {why}: omit one of the two.")


@checked
def plan(pilot: Results, difference: float) -> Plan:
    """How many items show an effect of `difference` points, at a power of 80, 90 and 95 %, from a pilot's variances.

    Two effects: positions whose accuracies differ with that standard deviation, and two results whose balanced
    accuracies differ by that much. `pilot` is a run or file of one result, or of two (baseline, then the method); with
    one the two results are taken as unrelated, which asks for too many items.

    >>> from transformers_agci import plan, probe, probe_data
    >>> pilot = probe(data=probe_data(items=4), planted_bias=2, progress=False)
    >>> found = plan(pilot, difference=10)
    >>> found.pilot_items, [each.power for each in found.effects[0].plans]
    (4, [0.8, 0.9, 0.95])
    """
    points = float(difference)
    if not 0 < points < 100:
        raise InputError(f"`difference` must lie between 0 and 100 points, but is {difference!r}.")
    run = as_results("pilot", pilot)
    if len(run) not in (1, 2):
        raise InputError(f"`pilot` must be one result, or two (baseline, then the method), but is {len(run)} results.")
    return Plan(**vars(plan_items(run.results, points / 100)))
