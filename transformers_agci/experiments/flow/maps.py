"""Flow over a probe file, aggregated: mean map per place of the target, and the share of the flow on the target."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.data.rows import read_rows
from transformers_agci.errors import InputError
from transformers_agci.experiments.flow.flow import SOURCES
from transformers_agci.experiments.items import item_names, target_box
from transformers_agci.method.lam import lambda_text
from transformers_agci.report.map_grid import PlaceMap, draw_map_grid
from transformers_agci.report.table import PERCENT, POINTS, format_table

CELL_SHARE = 1 / 9  # of the image's area, about: what a flow without an aim would have on the target


@dataclass(frozen=True)
class FlowMaps:
    """One source at one lambda.

    means   per target position the mean map [27, 27] of attention per area (None without rows)
    shares  [items, 9] share of the image's attention that lies on the target's cell
    change  shares minus those at the first lambda, paired; None for the first
    """

    source: str
    lam: float
    means: list[np.ndarray | None]
    shares: st.Measured
    change: st.Measured | None


def aggregate(path: Path) -> list[FlowMaps]:
    """Read a flow.jsonl and sum it up, per source and lambda. InputError for rows that agci flow did not write."""
    rows: list[ProbeRow] = []
    entries: list[list[dict[str, Any]]] = []
    for where, fields in read_rows(path):
        rows.append(ProbeRow.parse(fields, where))
        flows: Any = fields.get("flows")
        lambdas = [entry["lambda"] for entry in entries[0]] if entries else None
        if not _is_flows(flows, lambdas):
            raise InputError(
                f'{where}: the field "flows" is missing or not like that of the rows before; give a file that agci '
                "flow wrote."
            )
        entries.append(flows)
    names = item_names(rows)
    items = {name: number for number, name in enumerate(dict.fromkeys(names))}
    places = [(items[name], row.cell) for name, row in zip(names, rows, strict=True)]
    summed = []
    for source in SOURCES:
        first: st.Floats | None = None
        for number, recorded in enumerate(entries[0]):
            of_rows = [flows[number][source] for flows in entries]
            shares = np.full((len(items), len(POSITIONS)), np.nan)
            for place, entry in zip(places, of_rows, strict=True):
                shares[place] = entry["on_target"]
            change = None if first is None else st.paired_difference(first, shares)
            first = shares if first is None else first
            summed.append(
                FlowMaps(source, recorded["lambda"], _means(places, of_rows), st.mean_over_items(shares), change)
            )
    return summed


def _is_flows(flows: Any, lambdas: list[float] | None) -> bool:
    """Whether this is what a row holds: one entry per lambda with the share on the target and the map of each source.

    `lambdas` are those of the first row.
    """
    try:
        recorded = [entry["lambda"] for entry in flows]
        shapes = {np.array(entry[source]["map"], dtype=float).shape for entry in flows for source in SOURCES}
        shares = [float(entry[source]["on_target"]) for entry in flows for source in SOURCES]
    except (TypeError, KeyError, ValueError):
        return False
    sizes = {len(shape) == 2 and shape[0] > 0 for shape in shapes}
    return bool(shares) and len(shapes) == 1 and sizes == {True} and lambdas in (None, recorded)


def _means(places: list[tuple[int, int]], entries: list[dict[str, Any]]) -> list[np.ndarray | None]:
    means: list[np.ndarray | None] = []
    for cell in range(len(POSITIONS)):
        maps = [np.array(entry["map"]) for (_, at), entry in zip(places, entries, strict=True) if at == cell]
        means.append(np.mean(maps, axis=0) * maps[0].size if maps else None)
    return means


def maps_text(summed: list[FlowMaps]) -> str:
    """The shares on the target as a table, one row per source, lambda and position, and the paired changes."""
    rows = []
    for maps in summed:
        for name, share, change in zip(
            ["all", *POSITIONS], [maps.shares.overall, *maps.shares.cells], _changes(maps), strict=True
        ):
            rows.append(
                [f"{maps.source}, lambda {lambda_text(maps.lam)}, {name}", PERCENT.write(share), change, str(share.n)]
            )
    table = format_table(["from, target", "flow on the target, % [95 %]", "change, points [95 %]", "n"], rows)
    return f"{table}\n\nA flow without an aim would have {100 * CELL_SHARE:.1f} % on the target's cell."


def _changes(maps: FlowMaps) -> list[str]:
    if maps.change is None:
        return ["-"] * (1 + len(POSITIONS))
    return [POINTS.write(value) for value in (maps.change.overall, *maps.change.cells)]


def draw_maps(summed: list[FlowMaps], output_dir: Path, layers: str) -> list[Path]:
    """One panel of nine maps per source and lambda: flow_<source>_lam<lambda>.png; `layers` says them in words."""
    boxes = [target_box(k, 1, 1) for k in range(len(POSITIONS))]  # as fractions
    drawn = []
    for maps in summed:
        places = [
            PlaceMap(
                mean,
                POSITIONS[k].replace("_", " "),
                f"on it {PERCENT.write(maps.shares.cells[k])} %, n = {maps.shares.cells[k].n}",
                boxes[k],
            )
            for k, mean in enumerate(maps.means)
        ]
        overall = maps.shares.overall
        drawn.append(
            draw_map_grid(
                places,
                output_dir / f"flow_{maps.source}_lam{lambda_text(maps.lam)}.png",
                "attention per area of the image (1: all attention, evenly spread)",
                f"flow from {SOURCES[maps.source]}\nlambda {lambda_text(maps.lam)}, {layers}",
                f"outlined: the target's cell; flow on it {PERCENT.write(overall)} % of the image's (a ninth: 11.1 %), "
                f"n = {overall.n}, 95 % intervals over items",
            )
        )
    return drawn
