"""The ruler in Python: biases of known size on the embedded model, and what AGCI and its controls do to them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, whole_number
from transformers_agci.api.folders import place_of
from transformers_agci.api.rows import Displayed, Tabular, tables_html
from transformers_agci.experiments.defaults import RULER_ITEMS, RULER_POOL, RULER_SETS
from transformers_agci.experiments.ruler.report import (
    CalibrationReport,
    RulerOptions,
    RulerReport,
    calibrate,
    criteria_text,
    measure,
)
from transformers_agci.report.table import Table

FEWEST_ITEMS = 3


@dataclass(frozen=True, eq=False, repr=False)
class Ruler(Displayed, RulerReport, Tabular):
    """What the ruler measured: `conditions` by name, `criteria`, the curves by `figure()`. Shows itself as a table."""

    _kept: Any = field(default=None, repr=False)

    @property
    def file(self) -> Path:
        """The ruler.json that `make_report` and `agci report` take."""
        return self.folder / "ruler.json"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per condition: bias, beta, arm, accuracies, and the unbiased variance over the cells by measure."""
        return [_row(found) for found in self.conditions.values()]

    def _repr_html_(self) -> str:
        return tables_html([self.table], criteria_text(self.criteria).splitlines())


@dataclass(frozen=True, eq=False, repr=False)
class RulerCalibration(Displayed, CalibrationReport):
    """How often test and verdict err, over many item sets: `criteria`, and what each of the `sets` said."""

    _kept: Any = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        rows = [[each.name, each.stated, each.found, each.judged] for each in self.criteria]
        return tables_html([Table("", ["criterion", "stated", "found", ""], rows)])


@checked
def ruler(
    items: int = RULER_ITEMS,
    *,
    seed: int = 0,
    processes: int = 1,
    folder: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Ruler:
    """Plant decoder biases of size 0 to 2 and an encoder bias; each meets nothing, a known repair, AGCI, two controls.

    About four seconds of one core per item. Several `processes` need a script whose work stands below
    `if __name__ == "__main__":`, as Python's multiprocessing does. With a `folder` the margins stay there, with
    ruler.json, ruler.md and ruler.png, and the same call goes on after an interruption.

    >>> from transformers_agci import ruler
    >>> found = ruler(items=3, progress=False)
    >>> found.to_pandas()[["beta", "arm"]].shape
    (29, 2)
    """
    place = place_of(folder)
    options = _options(place.folder, items, seed, processes)
    return replace(run_ruler(replace(options, overwrite=overwrite, progress=progress)), _kept=place.kept)


@checked
def ruler_calibration(
    items: int = RULER_ITEMS,
    *,
    pool: int = RULER_POOL,
    sets: int = RULER_SETS,
    seed: int = 0,
    processes: int = 1,
    folder: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> RulerCalibration:
    """The error rates of the position test and of the verdict: over `sets` sets of `items` items, drawn from `pool`.

    >>> from transformers_agci import ruler_calibration
    >>> found = ruler_calibration(items=3, pool=3, sets=2, progress=False)
    >>> [each.name for each in found.criteria][:2], len(found.sets)
    (['size of the test', 'size of the verdict'], 2)
    """
    place = place_of(folder)
    pool, sets = whole_number("pool", pool, FEWEST_ITEMS), whole_number("sets", sets)
    options = replace(_options(place.folder, items, seed, processes), pool=pool, sets=sets)
    return replace(run_calibration(replace(options, overwrite=overwrite, progress=progress)), _kept=place.kept)


def _options(folder: Path, items: int, seed: int, processes: int) -> RulerOptions:
    """What both measurements have; InputError names an argument that is none."""
    count, seed = whole_number("items", items, FEWEST_ITEMS), whole_number("seed", seed, least=0)
    return RulerOptions(folder, count, seed, whole_number("processes", processes))


def run_ruler(options: RulerOptions) -> Ruler:
    """The ruler as the command runs it."""
    return Ruler(**vars(measure(options)))


def run_calibration(options: RulerOptions) -> RulerCalibration:
    """The calibration as the command runs it."""
    return RulerCalibration(**vars(calibrate(options)))


def _row(found: Any) -> dict[str, Any]:
    accuracy = {f"{name}_accuracy": value["estimate"] for name, value in found["accuracy"].items()}
    uneven = {
        f"unevenness_{name}": None if level is None else level["estimate"]
        for name, level in found["unevenness"].items()
    }
    verdict = found.get("against nothing", {}).get("verdict")
    plain = {name: found[name] for name in ("bias", "beta", "arm", "items", "position_p")}
    return {**plain, **accuracy, **uneven, "against_nothing": verdict}
