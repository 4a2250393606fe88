"""The same arms on the ruler: which method repairs a decoder bias of known size, and which only moves the threshold?

Evenness is V's signed root of the Yes margins, in sds of the margins. A method that repairs makes the margins more even
than nothing does; one that moves the threshold says Yes more or less often, to both questions; one that costs tells Yes
from No less well. Each is shown where its 95 % interval, over items, leaves zero out; a method may do several.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.experiments.compare.arms import STOCK, Arm
from transformers_agci.experiments.ruler.analysis import Side, summarize
from transformers_agci.experiments.ruler.conditions import LAMBDA, NOTHING, REPAIR, Condition
from transformers_agci.experiments.ruler.run import ItemRun
from transformers_agci.method.lam import lambda_text
from transformers_agci.method.names import OTHER
from transformers_agci.method.rivals import RIVALS
from transformers_agci.report.table import format_table
from transformers_agci.statistics.evenness import signed_root

SIZES = (0.0, 0.5, 1.0)  # planted decoder biases, in attention logits
HEADER = ("bias", "arm", "Yes %", "No %", "sd of margins", "AUC", "says Yes, points", "AUC against nothing", "shown")

EFFECTS = {"said_yes": ("says Yes more often", "says Yes less often"), "auc_difference": ("higher AUC", "lower AUC")}


def ruler_arms(arms: Sequence[Arm]) -> tuple[list[str], list[str]]:
    """The arms that the ruler can measure, and why the others cannot be."""
    served, left_out = [], []
    for arm in arms:
        if arm.method == STOCK:
            continue
        if arm.method.partition("-")[0] == OTHER:
            left_out.append(f"{arm.word} is not on the ruler, which encodes its own images only.")
            continue
        if arm.options:
            left_out.append(f"{arm.word} is not on the ruler, which takes a strength alone.")
            continue
        served.append(f"{arm.method}:{lambda_text(arm.value)}")
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
        side = Side.of(margins[condition.name])
        auc = st.signal_detection.auc_intervals(*side).overall
        found[condition.name] |= {"auc": auc.estimate, "auc_interval": [auc.low, auc.high]}
        if condition.arm != NOTHING:
            nothing = Side.of(margins[Condition(condition.beta).name])
            found[condition.name]["against nothing"] |= _threshold_and_auc(nothing, side)
    return found, left_out


def _threshold_and_auc(nothing: Side, side: Side) -> dict[str, Any]:
    """By how much more often an arm says Yes than nothing does (a share of all rows), and the difference of its AUC."""
    said = [np.concatenate([table > 0 for table in each], axis=1).astype(float) for each in (nothing, side)]
    return {
        "said_yes": st.mean_over_items(said[1] - said[0]).overall._asdict(),
        "auc_difference": st.signal_detection.auc_difference(nothing, side)._asdict(),
    }


def shown(found: Mapping[str, Any]) -> str:
    """What an arm is shown to do to its bias, in words; "" of nothing itself."""
    against = found.get("against nothing")
    if against is None:
        return ""
    words = [against["verdict"]] if against["verdict"].endswith("even") else []
    for name, (more, less) in EFFECTS.items():
        low, high = against[name]["low"], against[name]["high"]
        words += [more] * (low > 0) + [less] * (high < 0)
    return ", ".join(words) or "no change shown"


def ruler_text(summary: Mapping[str, Any], left_out: Sequence[str]) -> str:
    """One row per condition."""
    rows = [
        [
            found["bias"],
            found["arm"],
            *(f"{100 * found['accuracy'][name]['estimate']:.1f}" for name in ("yes", "no")),
            _root(found["unevenness"]["margin"]),
            "{:.3f} ({:.3f} to {:.3f})".format(found["auc"], *found["auc_interval"]),
            *(
                _interval(found["against nothing"][name], form, unit) if "against nothing" in found else ""
                for name, form, unit in (("said_yes", "{:+.1f}", 100), ("auc_difference", "{:+.3f}", 1))
            ),
            shown(found),
        ]
        for found in summary.values()
    ]
    rivals = {name: RIVALS[name] for found in summary.values() if (name := found["arm"].partition(":")[0]) in RIVALS}
    notes = [f"{name}: {rival.note}." for name, rival in rivals.items() if rival.note]
    return "\n\n".join([format_table(HEADER, rows), *notes, *left_out])


def _root(found: Mapping[str, float] | None) -> str:
    """V's signed root with the roots of its interval's ends."""
    if found is None:
        return "-"
    return _interval({name: signed_root(found[name]) for name in ("estimate", "low", "high")}, "{:.3f}")


def _interval(found: Mapping[str, float], form: str, unit: float = 1) -> str:
    if math.isnan(found["low"]):
        return form.format(unit * found["estimate"])  # nothing varies, which has no interval
    estimate, low, high = (form.format(unit * found[name]) for name in ("estimate", "low", "high"))
    return f"{estimate} ({low} to {high})"
