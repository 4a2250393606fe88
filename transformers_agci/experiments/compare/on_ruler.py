"""The same arms on the ruler: which method repairs a decoder bias of known size, and which only moves the threshold?

Evenness is V's signed root of the Yes margins, in sds of the margins, and of the AUC, in points. A method that repairs
makes the margins more even than nothing does, and tells Yes from No as well; one that only moves the threshold says Yes
more or less often, and its AUC and evenness stay.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformers_agci.experiments.compare.arms import STOCK, Arm
from transformers_agci.experiments.ruler.analysis import summarize
from transformers_agci.experiments.ruler.conditions import LAMBDA, NOTHING, REPAIR, Condition
from transformers_agci.experiments.ruler.run import ItemRun
from transformers_agci.method.names import OTHER
from transformers_agci.method.rivals import RIVALS
from transformers_agci.report.table import format_table
from transformers_agci.statistics.evenness import signed_root

SIZES = (0.0, 0.5, 1.0)  # planted decoder biases, in attention logits
HEADER = ("bias", "arm", "Yes %", "No %", "sd of margins", "sd of AUC", "AUC", "p", "against nothing")


def ruler_arms(arms: Sequence[Arm]) -> tuple[list[str], list[str]]:
    """The arms that the ruler can measure, and why the others cannot be."""
    served, left_out = [], []
    for arm in arms:
        if arm.method == STOCK:
            continue
        if arm.method.partition("-")[0] == OTHER:
            left_out.append(f"{arm.word} is not on the ruler, which encodes its own images only.")
            continue
        if arm.is_rival and (RIVALS[arm.method].contrast is not None or arm.options):
            why = "it acts on generate's logits" if not arm.options else "the ruler takes a strength alone"
            if RIVALS[arm.method].scores is None or arm.options:
                left_out.append(f"{arm.word} is not on the ruler: {why}.")
                continue
            left_out.append(f"{arm.word} is on the ruler without its second pass.")
        served.append(f"{arm.method}:{arm.value:g}")
    return served, left_out


def conditions_of(names: Sequence[str]) -> list[Condition]:
    """Every size with nothing, with the known repair and with each arm."""
    return [Condition(beta, arm) for arm in (NOTHING, REPAIR, *names) for beta in SIZES]


def measure_on_ruler(
    folder: Path, arms: Sequence[Arm], items: int, seed: int, processes: int
) -> tuple[dict[str, Any], list[str]]:
    """Summaries by condition (see ruler/analysis.py), and what had to be left out. A stopped run goes on."""
    names, left_out = ruler_arms(arms)
    conditions = conditions_of(names)
    run = ItemRun(folder / "ruler.jsonl", ("ruler", "items", seed), items, conditions, LAMBDA, processes)
    margins = run.margins()
    found = summarize(margins, conditions)
    for condition in conditions:
        found[condition.name]["auc"] = _auc(margins[condition.name])
    return found, left_out


def _auc(margins: Any) -> float:
    """Of all Yes rows against all No rows."""
    yes, no = np.sort(margins[:, 0].ravel()), np.sort(margins[:, 1].ravel())
    below = np.searchsorted(no, yes, side="left") + np.searchsorted(no, yes, side="right")
    return float(below.sum() / (2 * len(yes) * len(no)))


def ruler_text(summary: Mapping[str, Any], left_out: Sequence[str]) -> str:
    """One row per condition."""
    rows = []
    for found in summary.values():
        uneven = found["unevenness"]
        rows.append(
            [
                found["bias"],
                found["arm"],
                *(f"{100 * found['accuracy'][name]['estimate']:.1f}" for name in ("yes", "no")),
                *(_root(uneven[name], unit, form) for name, unit, form in (("margin", 1, ".3f"), ("auc", 100, ".1f"))),
                f"{found['auc']:.3f}",
                f"{found['position_p']:.3g}",
                found.get("against nothing", {}).get("verdict", ""),
            ]
        )
    return "\n\n".join([format_table(HEADER, rows), *left_out])


def _root(found: Mapping[str, float] | None, unit: float, form: str) -> str:
    return "-" if found is None else format(unit * signed_root(found["estimate"]), form)
