"""The ruler's curve and table on the page, from the ruler.json that `agci ruler` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers_agci.data.rows import Row, require, require_number, require_object, require_text
from transformers_agci.errors import InputError, short
from transformers_agci.report.page.plots import Plot, Point, Series, line_plot
from transformers_agci.report.table import Table
from transformers_agci.statistics.evenness import signed_root
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.reading import path_text

MEASURES = (  # measure, label, unit
    ("margin", "sd of the cells' mean margins (margin sds)", 1.0),
    ("auc", "sd of the cells' AUC (points)", 100.0),
)


def ruler_plots(path: Path) -> tuple[list[Plot], Table]:
    """A plot per measure and the table; InputError for a file that `agci ruler` did not write."""
    try:
        conditions = _read_conditions(path)
    except InputError as error:
        remedy = "give `ruler` the ruler.json that agci ruler wrote"
        raise InputError(f"{str(error).removesuffix('.')}; {remedy}.") from None
    betas = sorted({found["beta"] for found in conditions if found["beta"] is not None})
    return [_plot(conditions, betas, *measure) for measure in MEASURES], _table(conditions)


def _read_conditions(path: Path) -> list[Mapping[str, Any]]:
    """The conditions of a ruler.json, whatever the page shows of them checked."""
    where = path_text(path)
    conditions = require_object(read_json_object(path), "conditions", where)
    if not conditions:
        raise InputError(f'{where}: "conditions" is empty.')
    for name in conditions:
        _check_condition(
            require_object(conditions, name, f'{where}, "conditions"'), f"{where}, condition {short(name)}"
        )
    return list(conditions.values())


def _check_condition(found: Row, where: str) -> None:
    for name in ("bias", "arm"):
        require_text(found, name, where)
    if require(found, "beta", where) is not None:
        require_number(found, "beta", where)
    require_number(found, "position_p", where, 0, 1)
    accuracy, levels = (require_object(found, name, where) for name in ("accuracy", "unevenness"))
    for name in ("yes", "no"):
        require_number(require_object(accuracy, name, where), "estimate", f'{where}, "accuracy", "{name}"', 0, 1)
    for measure, _, _ in MEASURES:
        if require(levels, measure, where) is not None:
            level, place = require_object(levels, measure, where), f'{where}, "unevenness", "{measure}"'
            require_number(level, "estimate", place)
            for bound in ("low", "high"):
                if require(level, bound, place) == level[bound]:  # NaN where few items give no interval
                    require_number(level, bound, place)
            if level["low"] > level["estimate"] or level["high"] < level["estimate"]:
                raise InputError(f'{place}: the "estimate" does not lie between "low" and "high".')
    if "against nothing" in found:
        require_text(require_object(found, "against nothing", where), "verdict", f'{where}, "against nothing"')


def _plot(conditions: list[Mapping[str, Any]], betas: list[float], measure: str, label: str, unit: float) -> Plot:
    series = []
    for number, arm in enumerate(dict.fromkeys(found["arm"] for found in conditions)):
        known = [found for found in conditions if found["arm"] == arm and found["unevenness"][measure]]
        points = [
            _point(f["unevenness"][measure], unit, f["beta"] + 0.02 * number) for f in known if f["beta"] is not None
        ]
        series.append(Series(arm, sorted(points, key=lambda point: point.x)))
    names = [(beta, f"{beta:g}") for beta in betas]
    return line_plot(
        f"Measured unevenness against the planted bias: {label}",
        series,
        x_label="planted decoder bias (attention logits, top to bottom row)",
        y_label=label,
        zero=True,
        x_names=names,
    )


def _point(level: Mapping[str, float], unit: float, x: float) -> Point:
    value, low, high = (unit * signed_root(level[name]) for name in ("estimate", "low", "high"))
    return Point(value, low, high, x)


def _table(conditions: list[Mapping[str, Any]]) -> Table:
    header = [
        "bias",
        "arm",
        "Yes %",
        "No %",
        "sd of margins",
        "sd of AUC, points",
        "p of the position",
        "against nothing",
    ]
    rows = []
    for found in conditions:
        levels = [found["unevenness"][measure] for measure, _, _ in MEASURES]
        roots = [
            "-" if level is None else f"{unit * signed_root(level['estimate']):.3f}"
            for level, (_, _, unit) in zip(levels, MEASURES, strict=True)
        ]
        accuracies = [f"{100 * found['accuracy'][name]['estimate']:.1f}" for name in ("yes", "no")]
        said = found.get("against nothing", {}).get("verdict", "")
        rows.append([found["bias"], found["arm"], *accuracies, *roots, f"{found['position_p']:.3g}", said])
    return Table("", header, rows)
