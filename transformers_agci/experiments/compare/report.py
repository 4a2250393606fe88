"""A comparison's report: every method against stock.

Of methods at several strengths one is chosen on development items, and all methods report on the held-out ones. Where
there is nothing to choose, all items report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.compare.arms import STOCK, Arm
from transformers_agci.experiments.compare.run import ArmResult
from transformers_agci.experiments.defaults import CHOOSE_BY, DEV_SHARE, Choice
from transformers_agci.experiments.position import evidence_report
from transformers_agci.experiments.position.comparison import as_json
from transformers_agci.experiments.position.evidence import Evidence, gather
from transformers_agci.experiments.position.measures import ResamplingConfig
from transformers_agci.experiments.position.results import read_results
from transformers_agci.experiments.position.sweep import FEWEST, Split, part_of, scores_of
from transformers_agci.method.rivals import RIVALS
from transformers_agci.report.table import ABSENT, NUMBER, PERCENT, POINTS, Style, Table, format_table
from transformers_agci.statistics.evenness import signed_root

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THREE = Style(digits=3)


@dataclass(frozen=True)
class Compared:
    """The report of one model.

    Attributes:
        scores: of every arm on the development items, by label; empty where nothing is chosen.
        chosen: of every method the arm that reports, stock first.
        evidence: on the held-out items, on all where nothing is chosen.
    """

    split: Split
    choice: Choice
    scores: dict[str, float]
    chosen: list[ArmResult]
    evidence: Evidence

    @property
    def reported_on(self) -> str:
        """Which items report: "the 57 held-out items", "all 100 items"."""
        items = counted(self.split.held_out, "item")
        return f"the {self.split.held_out} held-out items" if self.split.dev else f"all {items}"


@dataclass(frozen=True)
class ReportOptions:
    """How the arms are chosen and reported; `margin` is equivalence's, a share."""

    choice: Choice = CHOOSE_BY
    dev_share: float = DEV_SHARE
    margin: float | None = None
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)

    def __post_init__(self) -> None:
        if not 0 < self.dev_share < 1:
            raise InputError(f"`dev_share` is {self.dev_share:g}, but must lie between 0 and 1.")


def compare_arms(results: Sequence[ArmResult], options: ReportOptions) -> Compared:
    """Choose the strengths of methods that have several on the development items; the evidence on the others."""
    read = {result.arm.label: read_results(result.file, label=result.arm.label) for result in results}
    first = read[results[0].arm.label]
    choose = chooses([result.arm for result in results])
    dev, held, split = split_items(dict(zip(first.items, first.captions, strict=True)), options.dev_share, choose)
    scores = scores_of([result.select(dev) for result in read.values()], options.choice) if choose else {}
    best: dict[str, ArmResult] = {}
    for result in results:
        name, label = result.arm.method, result.arm.label
        if name not in best or scores[label] > scores[best[name].arm.label]:
            best[name] = result
    chosen = list(best.values())
    evidence = gather([read[arm.arm.label].select(held) for arm in chosen], options.margin, options.resampling)
    return Compared(split, options.choice, scores, chosen, evidence)


def overview(models: Mapping[str, Compared]) -> Table:
    """Several models in one table: every method at its chosen strength, held against the stock of its own model."""
    rows = []
    for name, compared in models.items():
        pairs = [None, *(comparison.pair for comparison in compared.evidence.comparisons)]
        for arm, row, pair in zip(compared.chosen, compared.evidence.results, pairs, strict=True):
            level = row.report.yes.margin_unevenness if row.report.yes else None
            rows.append(
                [
                    f"{name}, {arm.arm.label}",
                    PERCENT.write(row.report.balanced),
                    THREE.write(row.report.auc),
                    ABSENT if level is None else NUMBER.value(signed_root(level.estimate)),
                    POINTS.write(pair.balanced) if pair else "",
                    pair.evenness.verdict if pair else "",
                ]
            )
    header = ["model, method", "balanced %", "AUC", "sd of margins over cells", "against its stock, points", "evenness"]
    items = dict.fromkeys(compared.reported_on for compared in models.values())
    return Table(f"all models on {' or '.join(items)}; 95 % intervals", header, rows)


def chooses(arms: Sequence[Arm]) -> bool:
    """Whether some method has several arms, one of which must be chosen."""
    return len({arm.method for arm in arms}) < len(arms)


def split_items(captions: Mapping[str, str], share: float, choose: bool) -> tuple[list[str], list[str], Split]:
    """The items that choose and those that report, by the hash of their captions; InputError where either are few.

    Without anything to `choose` all report.
    """
    if not choose:
        if len(captions) < FEWEST:
            raise InputError(
                f"{counted(len(captions), 'item')} to compare methods on, but at least {FEWEST} are needed: give more "
                "`items`."
            )
        return [], list(captions), Split("no method has several strengths: all items report", 0.0, 0, len(captions))
    dev = [item for item, caption in captions.items() if part_of(caption, 1000) / 1000 < share]
    held = [item for item, caption in captions.items() if part_of(caption, 1000) / 1000 >= share]
    for what, items in (("choose", dev), ("report", held)):
        if len(items) < FEWEST:
            raise InputError(
                f"Only {len(items)} of {len(captions)} items are left to {what}; at least {FEWEST} are needed: "
                "give more `items`, or another `dev_share`."
            )
    rule = f"SHA-256 of the caption, first 8 bytes modulo 1000, below {1000 * share:g}: chooses"
    return dev, held, Split(rule, share, len(dev), len(held))


def compared_text(compared: Compared, results: Sequence[ArmResult], left_out: Mapping[str, str]) -> str:
    """Everything: what was chosen, the evidence, what each method costs, what must be said, and who is missing."""
    blocks = [
        _choices_text(compared, results),
        f"on {compared.reported_on}:",
        evidence_report.evidence_text(compared.evidence),
        cost_text(results),
        *notes_of([result.arm for result in results]),
        *(f"{result.arm.label}: {counted(result.skipped, 'row')} skipped." for result in results if result.skipped),
        *(f"{label}: left out. {why}" for label, why in left_out.items()),
    ]
    return "\n\n".join(blocks)


def _choices_text(compared: Compared, results: Sequence[ArmResult]) -> str:
    """The arms' scores on the items that choose, or why nothing is chosen."""
    if not compared.scores:
        return f"No method has several strengths: nothing is chosen, and {compared.reported_on} report."
    methods = [result.arm.method for result in results]
    reporting = {result.arm.label for result in compared.chosen}
    factor = 100.0 if compared.choice == "balanced" else 1.0
    rows = []
    for result in results:
        label, several = result.arm.label, methods.count(result.arm.method) > 1
        said = ("chosen" if label in reporting else "") if several else "(its only strength)"
        rows.append([label, f"{factor * compared.scores[label]:.2f}", said if label != STOCK else ""])
    return format_table([f"on {compared.split.dev} items that choose", compared.choice, ""], rows)


def cost_text(results: Sequence[ArmResult]) -> str:
    """Milliseconds and memory per row of every arm."""
    first = results[0]
    rows = []
    for result in results:
        times = result.ms_per_row / first.ms_per_row if result.ms_per_row and first.ms_per_row else None
        rows.append(
            [
                result.arm.label,
                _written(result.ms_per_row, 1),
                _written(times, 2),
                _written(result.kib_per_row, 0),
            ]
        )
    return format_table(["cost", "ms per row", "times stock's", "KiB per list of images"], rows)


def _written(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def notes_of(arms: Sequence[Arm]) -> list[str]:
    """What must be said about the rivals among the arms, once each."""
    rivals = dict.fromkeys(arm.method for arm in arms if arm.is_rival and RIVALS[arm.method].note)
    return [f"{name}: {RIVALS[name].note}." for name in rivals]


def compared_json(compared: Compared, results: Sequence[ArmResult], left_out: Mapping[str, str]) -> dict[str, Any]:
    """All numbers."""
    return {
        "split": as_json(compared.split),
        "choose_by": compared.choice,
        "dev_scores": compared.scores,
        "chosen": [result.arm.label for result in compared.chosen],
        "evidence": as_json(compared.evidence),
        "cost": {result.arm.label: _cost_of(result) for result in results},
        "notes": notes_of([result.arm for result in results]),
        "skipped_rows": {result.arm.label: result.skipped for result in results},
        "left_out": dict(left_out),
    }


def _cost_of(result: ArmResult) -> Mapping[str, float | None]:
    return {"ms_per_row": result.ms_per_row, "kib_per_list": result.kib_per_row}


def compared_figure(compared: Compared) -> "Figure":
    """The evidence suite's figure of the items that report."""
    return evidence_report.evidence_figure(compared.evidence, f"against stock, {compared.reported_on}")
