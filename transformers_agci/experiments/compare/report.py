"""A comparison's report: strengths chosen on development items, every method against stock on the held-out ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.compare.arms import Arm
from transformers_agci.experiments.compare.run import ArmResult
from transformers_agci.experiments.defaults import CHOOSE_BY, DEV_SHARE
from transformers_agci.experiments.position import evidence_report
from transformers_agci.experiments.position.comparison import as_json
from transformers_agci.experiments.position.evidence import Evidence, gather
from transformers_agci.experiments.position.measures import ResamplingConfig
from transformers_agci.experiments.position.results import read_results
from transformers_agci.experiments.position.sweep import FEWEST, Choice, Split, part_of, scores_of
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
        scores: of every arm on the development items, by label.
        chosen: of every method the arm that reports, stock first.
        evidence: on the held-out items.
    """

    split: Split
    choice: Choice
    scores: dict[str, float]
    chosen: list[ArmResult]
    evidence: Evidence


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
    """Choose each method's strength on the development items, and gather the evidence on the others."""
    read = {result.arm.label: read_results(result.file, label=result.arm.label) for result in results}
    first = read[results[0].arm.label]
    dev, held, split = split_items(dict(zip(first.items, first.captions, strict=True)), options.dev_share)
    scores = scores_of([result.select(dev) for result in read.values()], options.choice)
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
    held = {compared.split.held_out for compared in models.values()}
    return Table(f"all models on the {', '.join(map(str, sorted(held)))} held-out items; 95 % intervals", header, rows)


def split_items(captions: Mapping[str, str], share: float) -> tuple[list[str], list[str], Split]:
    """The items that choose and those that report, by the hash of their captions; InputError where either are few."""
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
    chosen = {result.arm.label for result in compared.chosen}
    factor = 100.0 if compared.choice == "balanced" else 1.0
    dev = [
        [label, f"{factor * score:.2f}", "chosen" if label in chosen else ""]
        for label, score in compared.scores.items()
    ]
    blocks = [
        format_table([f"on {compared.split.dev} items that choose", compared.choice, ""], dev),
        f"on the {compared.split.held_out} held-out items:",
        evidence_report.evidence_text(compared.evidence),
        cost_text(results),
        *notes_of([result.arm for result in results]),
        *(f"{result.arm.label}: {counted(result.skipped, 'row')} skipped." for result in results if result.skipped),
        *(f"{label}: left out. {why}" for label, why in left_out.items()),
    ]
    return "\n\n".join(blocks)


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
    """The evidence suite's figure of the held-out items."""
    return evidence_report.evidence_figure(compared.evidence, "against stock, held-out items")
