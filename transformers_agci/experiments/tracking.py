"""Results handed to a tracker of runs (wandb, trackio) where the user asks for it: one run per result file.

A tracker gets the settings of the manifest as the run's configuration, and figures as its summary. Whether it reaches
for the network is its own affair (WANDB_MODE=offline; trackio stays on this machine).
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers_agci import statistics as st
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.score_report import flat_figures
from transformers_agci.experiments.position.results import read_results
from transformers_agci.storage import manifest
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.result_names import sibling_path

PROJECT = "transformers-agci"


def check_tracker(tracker: str | None) -> None:
    """InputError where the tracker is not installed: before any work, not after it."""
    if tracker is not None and find_spec(tracker) is None:
        raise InputError(f"`report_to` {tracker}: the package is not installed; pip install {tracker}.")


def track(tracker: str, files: Sequence[Path], figures_of: Callable[[Path], Mapping[str, float]]) -> None:
    """Hand every result file over as a run of its own."""
    module: Any = importlib.import_module(tracker)
    for file in files:
        content = manifest.read(file)
        module.init(project=PROJECT, name=file.stem, config=content["settings"] if content else {})
        module.log(dict(figures_of(file)))
        module.finish()


def probe_figures(file: Path) -> dict[str, float]:
    """Shares of right answers on the rows of either kind, and what of them is balanced accuracy."""
    result = read_results(file)
    found = {
        name: float(st.clustered_proportion(tables.correct).estimate)
        for name, tables in (("yes_accuracy", result.yes), ("no_accuracy", result.no))
        if tables is not None
    }
    return found | ({"balanced_accuracy": sum(found.values()) / 2} if len(found) == 2 else {})


def benchmark_figures(file: Path) -> dict[str, float]:
    """The numbers of the score beside a result file; none where it could not be scored."""
    try:
        report = read_json_object(sibling_path(file, ".score.json"))
    except InputError:
        return {}
    figures = flat_figures(report).items()
    return {name: float(v) for name, v in figures if isinstance(v, int | float) and not isinstance(v, bool)}
