"""How the position probe's results change with lambda: one curve per quantity, with intervals over items."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.position.evidence import Evidence
from transformers_agci.experiments.position.evidence_report import figure_panels
from transformers_agci.experiments.position.result_labels import method_and_lambda
from transformers_agci.report.heatmap import GREY, INK, with_plain_words
from transformers_agci.statistics import Interval
from transformers_agci.storage.reading import path_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lambdas_of_files(paths: Sequence[str | Path]) -> list[float]:
    """The lambda of each result file, out of the manifest beside it.

    Raises InputError where one has none, where two are of one lambda, or where they are not of one method.
    """
    found, methods = [], set()
    for path in paths:
        made_with = method_and_lambda(path)
        if made_with is None:
            raise InputError(f"{path_text(path)}: no manifest beside it says its lambda, which a curve needs.")
        method, lam = made_with
        found.append(lam)
        if lam:  # at 0 every method is the baseline
            methods.add(method)
    if len(set(found)) < len(found) or len(methods) > 1:
        named = ", ".join(f"{path_text(path)} (lambda {lam:g})" for path, lam in zip(paths, found, strict=True))
        raise InputError(
            f"A curve needs one result per lambda, all of one method; name other result files than {named}."
        )
    return found


def curve_figure(evidence: Evidence, lambdas: Sequence[float], title: str = "") -> "Figure":
    """One panel per quantity: lambda to the right, the estimate and its 95 % interval upwards."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = figure_panels(evidence)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(2.9 * columns, 2.3 * rows + 0.6), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, points) in zip(places, panels, strict=False):
        _draw_points(axes, lambdas, points)
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xlabel("lambda", fontsize=8, color=INK)
        if "against" in name:
            axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    figure.suptitle(title, fontsize=11, color=INK)
    figure.supxlabel(f"{counted(evidence.items, 'item')}; bars: 95 % intervals over items", fontsize=7.5, color=GREY)
    return with_plain_words(figure)


def _draw_points(axes: Any, lambdas: Sequence[float], points: Sequence[Interval]) -> None:
    known = sorted((lam, point) for lam, point in zip(lambdas, points, strict=True) if np.isfinite(point.estimate))
    axes.plot([lam for lam, _ in known], [point.estimate for _, point in known], "o-", color=INK, markersize=4)
    for lam, point in known:
        if np.isfinite(point.low):
            axes.plot([lam, lam], [point.low, point.high], color=GREY, linewidth=1.4)
    axes.set_xticks(sorted(lambdas), [f"{lam:g}" for lam in sorted(lambdas)])
    margin = 0.05 * (max(lambdas) - min(lambdas))
    axes.set_xlim(min(lambdas) - margin, max(lambdas) + margin)
    axes.tick_params(labelsize=7.5, length=2, color=GREY, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
