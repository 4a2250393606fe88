"""The figure of `perf/scaling.py`: measured points, and the model's line through them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

LABELS = {
    "rows": "rows (one question per image)",
    "tokens": "prompt tokens",
    "questions": "questions per image",
    "lambdas": "lambdas",
    "processes": "machines",
}
MEASURED, MODEL = "#1f4e79", "#c55a11"


def draw(
    path: Path,
    points: Sequence[Any],
    constants: np.ndarray,
    *,
    shares: Mapping[int, float],
    calculated: Mapping[int, float],
    unit: str,
) -> None:
    """Five panels, the last one as a share of one process's time.

    points      `scaling.Point`s
    constants   of the model, in the order of `Point.terms`
    shares      measured: processes -> the slowest one's part of the time of one
    calculated  the same by the model, up to 64 machines
    """
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
    for axis, sweep in zip(axes, ("rows", "side", "questions", "lambdas"), strict=False):
        chosen = sorted((point for point in points if point.sweep == sweep), key=lambda point: point.at)
        at = [point.tokens if sweep == "side" else point.at for point in chosen]
        axis.plot(at, [point.seconds for point in chosen], "o", color=MEASURED, label="measured")
        axis.plot(at, [np.array(point.terms) @ constants for point in chosen], color=MODEL, label="model")
        axis.set(xlabel=LABELS["tokens" if sweep == "side" else sweep], xscale="log", yscale="log")
        _name_ticks(axis, at)
    axes[0].set_ylabel(unit)
    axes[4].plot(list(shares), list(shares.values()), "o", color=MEASURED)
    furthest = max(shares)
    within = {machines: share for machines, share in calculated.items() if machines <= furthest}
    beyond = {machines: share for machines, share in calculated.items() if machines >= furthest}
    axes[4].plot(list(within), list(within.values()), color=MODEL)
    axes[4].plot(list(beyond), list(beyond.values()), color=MODEL, linestyle="--", label="extrapolated")
    axes[4].legend(frameon=False)
    axes[4].set(xlabel=LABELS["processes"], ylabel="part of one process's time", xscale="log", yscale="log")
    _name_ticks(axes[4], list(calculated))
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _name_ticks(axis: Any, at: Sequence[int]) -> None:
    """The measured values stand at the axis below, plain numbers at the one beside."""
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(at, [str(value) for value in at], fontsize=9)
    low, high = axis.get_ylim()
    narrow = high / low < 10  # fewer than three of 1, 2, 5 would stand at the axis
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if narrow else (1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
