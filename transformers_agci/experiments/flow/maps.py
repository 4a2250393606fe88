"""Flow over a probe file, aggregated: mean map per place of the target, and the share of the flow on the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.data.grid import POSITIONS, Box
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.data.rows import (
    Row,
    number_table,
    read_rows,
    require,
    require_number,
    require_object,
    require_objects,
)
from transformers_agci.errors import InputError
from transformers_agci.experiments.items import item_names, target_box
from transformers_agci.method.lam import lambda_text
from transformers_agci.report.heatmap import Scale
from transformers_agci.report.map_grid import PlaceMap, common_scale, draw_map_grid, map_grid_figure
from transformers_agci.report.table import PERCENT, POINTS, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCES = {"text": "the text after the image", "answer": "the answer's position"}
LABEL = "attention per area of the image (1: all attention, evenly spread)"
LARGEST_SHARE = 1.01  # of all attention: sums in half precision may be a little above 1
CELL_SHARE = 1 / 9  # of the image's area, about: what a flow without an aim would have on the target


@dataclass(frozen=True)
class FlowMaps:
    """One source at one lambda.

    means         per target position the mean map [27, 27] of attention per area (None without rows)
    shares        share of the image's attention that lies on the target's cell, over items
    change        shares minus those at the first lambda, paired; None for the first
    mean_changes  means minus those at the first lambda; None for the first
    """

    source: str
    lam: float
    means: list[np.ndarray | None]
    shares: st.Measured
    change: st.Measured | None
    mean_changes: list[np.ndarray | None] | None


class RecordedFlow(NamedTuple):
    """What a row holds of one source at one lambda.

    on_target  share of the image's attention that lies on the target's cell, 0..1
    values     [27, 27] attention to each part of the image; a flow that looked at nothing else would sum to 1
    """

    on_target: float
    values: np.ndarray


class RowFlows(NamedTuple):
    """A row of flow.jsonl: its lambdas, and by source the flow at each of them."""

    row: ProbeRow
    lambdas: tuple[float, ...]
    flows: dict[str, list[RecordedFlow]]


def read_flows(path: Path) -> list[RowFlows]:
    """The rows of a flow.jsonl. InputError names file:line and field of one that agci flow did not write."""
    found: list[RowFlows] = []
    for where, fields in read_rows(path):
        flows = _row_flows(fields, where)
        first = found[0] if found else flows
        if flows.lambdas != first.lambdas or _size(flows) != _size(first):
            raise InputError(
                f'{where}: the lambdas of "flows", or the sizes of its maps, are not those of the first row '
                f"({first.row.where}); give a file that agci flow wrote."
            )
        found.append(flows)
    return found


def _row_flows(fields: Row, where: str) -> RowFlows:
    row = ProbeRow.parse(fields, where)
    row.check_published_form()
    entries = require_objects(fields, "flows", where)
    lambdas = [require_number(entry, "lambda", f'{where}, "flows"', 0) for entry in entries]
    if len(set(lambdas)) < len(lambdas):
        raise InputError(f'{where}: "flows" has a lambda twice: {", ".join(map(lambda_text, lambdas))}.')
    flows = {source: [_recorded(entry, source, where) for entry in entries] for source in SOURCES}
    return RowFlows(row, tuple(lambdas), flows)


def _recorded(entry: Row, source: str, where: str) -> RecordedFlow:
    of_source = require_object(entry, source, f'{where}, "flows"')
    place = f'{where}, "flows", "{source}"'
    values = number_table(require(of_source, "map", place), '"map"', place, None, 0, LARGEST_SHARE)
    return RecordedFlow(require_number(of_source, "on_target", place, 0, LARGEST_SHARE), values)


def _size(flows: RowFlows) -> set[tuple[int, ...]]:
    return {recorded.values.shape for of_source in flows.flows.values() for recorded in of_source}


def aggregate(found: Sequence[RowFlows]) -> list[FlowMaps]:
    """Sum up the rows of a flow.jsonl, per source and lambda."""
    names = item_names([flows.row for flows in found])
    items = {name: number for number, name in enumerate(dict.fromkeys(names))}
    places = [(items[name], flows.row.cell) for name, flows in zip(names, found, strict=True)]
    return [maps for source in SOURCES for maps in _of_source(source, found, places, len(items))]


def _of_source(source: str, found: Sequence[RowFlows], places: list[tuple[int, int]], items: int) -> list[FlowMaps]:
    """One source at every lambda; `places` are the rows' items and cells."""
    summed: list[FlowMaps] = []
    first: st.Floats | None = None
    for number, lam in enumerate(found[0].lambdas):
        of_rows = [flows.flows[source][number] for flows in found]
        shares = np.full((items, len(POSITIONS)), np.nan)
        for place, recorded in zip(places, of_rows, strict=True):
            shares[place] = recorded.on_target
        means, measured = _means(places, of_rows), st.mean_over_items(shares)
        within = st.Measured(measured.overall.within(0, 1), [cell.within(0, 1) for cell in measured.cells])
        change = mean_changes = None
        if first is not None:
            change = st.paired_difference(first, shares)
            mean_changes = [
                None if a is None or b is None else b - a for a, b in zip(summed[0].means, means, strict=True)
            ]
        first = shares if first is None else first
        summed.append(FlowMaps(source, lam, means, within, change, mean_changes))
    return summed


def _means(places: list[tuple[int, int]], of_rows: list[RecordedFlow]) -> list[np.ndarray | None]:
    means: list[np.ndarray | None] = []
    for cell in range(len(POSITIONS)):
        maps = [recorded.values for (_, at), recorded in zip(places, of_rows, strict=True) if at == cell]
        means.append(np.mean(maps, axis=0) * maps[0].size if maps else None)
    return means


def maps_text(summed: list[FlowMaps]) -> str:
    """The shares on the target as a table, one row per source, lambda and position, and the paired changes."""
    without_aim = f"A flow without an aim would have {100 * CELL_SHARE:.1f} % on the target's cell."
    return f"{maps_table(summed).text}\n\n{without_aim}"


def maps_table(summed: list[FlowMaps]) -> Table:
    """The same before it is written."""
    rows = []
    for maps in summed:
        for name, share, change in zip(
            ["all", *POSITIONS], [maps.shares.overall, *maps.shares.cells], _changes(maps), strict=True
        ):
            rows.append(
                [f"{maps.source}, lambda {lambda_text(maps.lam)}, {name}", PERCENT.write(share), change, str(share.n)]
            )
    return Table("", ["from, target", "flow on the target, % [95 %]", "change, points [95 %]", "n"], rows)


def _changes(maps: FlowMaps) -> list[str]:
    if maps.change is None:
        return ["-"] * (1 + len(POSITIONS))
    return [POINTS.write(value) for value in (maps.change.overall, *maps.change.cells)]


def draw_maps(summed: list[FlowMaps], output_dir: Path, layers: str) -> list[Path]:
    """Panels of nine maps; `layers` says them in words.

    flow_<source>_lam<lambda>.png per source and lambda, all lambdas of a source on one scale, and
    flow_<source>_lam<lambda>_change.png: that lambda minus the first.
    """
    drawn = []
    for source in dict.fromkeys(maps.source for maps in summed):
        of_source = [maps for maps in summed if maps.source == source]
        levels, changes = scales(of_source)
        first = lambda_text(of_source[0].lam)
        for maps in of_source:
            lam = lambda_text(maps.lam)
            path = output_dir / f"flow_{source}_lam{lam}.png"
            title = f"flow from {SOURCES[source]}\nlambda {lam}, {layers}"
            drawn.append(draw_map_grid(_places(maps), path, levels, title, _footnote(maps)))
            if maps.mean_changes is not None:
                path = output_dir / f"flow_{source}_lam{lam}_change.png"
                title = f"flow from {SOURCES[source]}\nlambda {lam} minus lambda {first}, {layers}"
                drawn.append(draw_map_grid(_changed_places(maps), path, changes, title, _change_footnote(maps)))
    return drawn


def flow_figure(summed: list[FlowMaps], source: str, lam: float) -> "Figure":
    """The nine mean maps of a source at a lambda, on the scale of all its lambdas."""
    of_source = [maps for maps in summed if maps.source == source]
    maps = next(maps for maps in of_source if maps.lam == lam)
    title = f"flow from {SOURCES[source]}\nlambda {lambda_text(lam)}"
    return map_grid_figure(_places(maps), scales(of_source)[0], title, _footnote(maps))


def scales(of_source: list[FlowMaps]) -> tuple[Scale, Scale]:
    """The scale of all lambdas of a source, and that of all differences from the first."""
    levels = [mean for maps in of_source for mean in maps.means]
    changes = [change for maps in of_source for change in maps.mean_changes or ()]
    return common_scale(levels, LABEL), common_scale(changes, f"change of {LABEL}", diverging=True)


def _places(maps: FlowMaps) -> list[PlaceMap]:
    return [
        PlaceMap(mean, _name(k), f"on target {PERCENT.with_unit(share, '%')}, n = {share.n}", _box(k))
        for k, (mean, share) in enumerate(zip(maps.means, maps.shares.cells, strict=True))
    ]


def _changed_places(maps: FlowMaps) -> list[PlaceMap]:
    assert maps.change is not None and maps.mean_changes is not None
    return [
        PlaceMap(mean, _name(k), f"on target {POINTS.with_unit(change, 'points')}, n = {change.n}", _box(k))
        for k, (mean, change) in enumerate(zip(maps.mean_changes, maps.change.cells, strict=True))
    ]


def _name(cell: int) -> str:
    return POSITIONS[cell].replace("_", " ")


def _box(cell: int) -> Box:
    return target_box(cell, 1, 1)  # as fractions


def _footnote(maps: FlowMaps) -> str:
    overall = maps.shares.overall
    return (
        f"outlined: the target's cell; flow on it {PERCENT.with_unit(overall, '%')} of the image's (a ninth: 11.1 %)\n"
        f"n = {overall.n}, 95 % intervals over items; all lambdas on one scale"
    )


def _change_footnote(maps: FlowMaps) -> str:
    assert maps.change is not None
    overall = maps.change.overall
    return (
        f"outlined: the target's cell; flow on it changes by {POINTS.with_unit(overall, 'points')}\n"
        f"n = {overall.n}, 95 % intervals paired over items"
    )
