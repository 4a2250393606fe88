"""Occlusion maps aggregated by the place of the target: nine maps, and how much of each lies on the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.data.grid import POSITIONS, Box
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.items import target_box
from transformers_agci.experiments.occlusion.files import ImageMap
from transformers_agci.experiments.occlusion.masks import Raster
from transformers_agci.report.heatmap import image_path, save_figure
from transformers_agci.report.map_grid import PlaceMap, common_scale, draw_one, map_grid_figure
from transformers_agci.report.table import PERCENT, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = "mean change of the answer's logits (each image's largest = 1)"


@dataclass(frozen=True)
class OcclusionMaps:
    """Per target position the mean map in pixels (None without images), and the share of its mass on the target.

    area  the target's box / the area that masks cover: the share of a map that knows no target
    """

    raster: Raster
    means: list[np.ndarray | None]
    counts: list[int]
    shares: list[st.Interval]
    overall: st.Interval
    areas: list[float]


def aggregate(maps: Sequence[ImageMap]) -> OcclusionMaps:
    """Enlarge every map to its image's pixels and average by target position; intervals are over items.

    The paper sums; the mean is that sum / n, and stays comparable where n differs. An image that no mask changes
    has no mass: it counts in the mean map, and in n, but has no share.

    Raises InputError where images of several sizes or mask rasters stand in one folder.
    """
    raster = maps[0].raster
    other = next((image for image in maps if image.raster != raster), None)
    if other is not None:
        raise InputError(
            f"{maps[0].name} has the raster {raster}, {other.name} {other.raster}: their maps cannot be "
            "summed; keep runs with other masks or image sizes in folders of their own."
        )
    items = {name: number for number, name in enumerate(dict.fromkeys(image.item for image in maps))}
    shares = np.full((len(items), len(POSITIONS)), np.nan)
    totals = [np.zeros((raster.height, raster.width)) for _ in POSITIONS]
    counts = [0] * len(POSITIONS)
    for image in maps:
        pixels = raster.enlarged(image.values)
        totals[image.cell] += pixels
        counts[image.cell] += 1
        shares[items[image.item], image.cell] = share_in(pixels, target_box(image.cell, *pixels.shape[::-1]))
    measured = st.mean_over_items(shares)
    overall, *cells = (share.within(0, 1) for share in (measured.overall, *measured.cells))
    means = [total / n if n else None for total, n in zip(totals, counts, strict=True)]
    covered = raster.covered().astype(float)
    areas = [share_in(covered, target_box(cell, raster.width, raster.height)) for cell in range(len(POSITIONS))]
    return OcclusionMaps(raster, means, counts, cells, overall, areas)


def share_in(pixels: np.ndarray, box: Box) -> float:
    """The share of a map's mass [height, width] inside a box, counting the pixels whose centre is in it; NaN if none.

    >>> share_in(np.ones((4, 4)), Box(0, 0, 2, 2))
    0.25
    """
    height, width = pixels.shape
    rows = (np.arange(height) + 0.5 > box.top) & (np.arange(height) + 0.5 < box.bottom)
    cols = (np.arange(width) + 0.5 > box.left) & (np.arange(width) + 0.5 < box.right)
    total = pixels.sum()
    return float(pixels[np.ix_(rows, cols)].sum() / total) if total > 0 else float("nan")


def maps_text(maps: OcclusionMaps) -> str:
    """Shares per position as a table."""
    return maps_table(maps).text


def maps_table(maps: OcclusionMaps) -> Table:
    """The same before it is written."""
    rows = [
        [name, PERCENT.write(share), f"{100 * area:.1f}", str(share.n)]
        for name, share, area in zip(POSITIONS, maps.shares, maps.areas, strict=True)
    ]
    rows.append(["all", PERCENT.write(maps.overall), f"{100 * np.mean(maps.areas):.1f}", str(maps.overall.n)])
    return Table("", ["target", "share of the map on the target, % [95 %]", "its area, %", "n"], rows)


def map_files(path: Path) -> list[Path]:
    """The files that `draw_maps` is to write: the panel, then the nine maps.

    A path ending in an image's suffix gets the panel, with the nine beside it as <name>_0 to <name>_8; a folder gets
    panel.png and <k>_<position>.png. InputError for a suffix that is no image's.
    """
    if path.suffix and not path.is_dir():
        return [image_path(path), *(path.with_name(f"{path.stem}_{k}{path.suffix}") for k in range(len(POSITIONS)))]
    return [path / "panel.png", *(path / f"{k}_{name}.png" for k, name in enumerate(POSITIONS))]


def draw_maps(maps: OcclusionMaps, files: Sequence[Path], title: str = "") -> list[Path]:
    """The panel and the nine maps, into the files of `map_files`."""
    panel, *single = files
    save_figure(panel_figure(maps, title), panel)
    places = [_place(maps, k) for k in range(len(POSITIONS))]
    short = common_scale(maps.means, "mean change (largest = 1)")
    return [panel, *(draw_one(places, k, file, short) for k, file in enumerate(single))]


def panel_figure(maps: OcclusionMaps, title: str = "") -> "Figure":
    """The nine mean maps on one scale."""
    places = [_place(maps, k) for k in range(len(POSITIONS))]
    said = (
        f"outlined: the target's cell; share of the map inside it {PERCENT.with_unit(maps.overall, '%')} "
        f"(area {100 * np.mean(maps.areas):.1f} %), {counted(maps.overall.n, 'image')}, 95 % intervals over items"
    )
    return map_grid_figure(places, common_scale(maps.means, LABEL), title, said)


def _place(maps: OcclusionMaps, k: int) -> PlaceMap:
    raster, share = maps.raster, maps.shares[k]
    box = target_box(k, raster.width, raster.height)
    fractions = (box.left / raster.width, box.top / raster.height, box.right / raster.width, box.bottom / raster.height)
    note = f"on target {PERCENT.with_unit(share, '%')}, n = {maps.counts[k]}"
    return PlaceMap(maps.means[k], POSITIONS[k].replace("_", " "), note, fractions)
