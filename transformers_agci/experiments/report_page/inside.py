"""What was measured inside the model, for the page: occlusion and flow as mean maps, and over the items' images."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.flow.maps import FlowMaps, aggregate, read_flows, scales
from transformers_agci.experiments.items import target_box
from transformers_agci.experiments.occlusion import maps as occlusion_maps
from transformers_agci.experiments.occlusion.files import read_folder
from transformers_agci.method.lam import lambda_text
from transformers_agci.report.heatmap import Scale
from transformers_agci.report.map_grid import common_scale
from transformers_agci.report.page.images import map_uri
from transformers_agci.report.page.render import ImageGrid, PlaceImage
from transformers_agci.report.table import PERCENT, POINTS
from transformers_agci.statistics import Measured
from transformers_agci.storage import manifest

Maps = Sequence[np.ndarray | None]
COARSE = 27  # rows and columns of a mean map in the page


@dataclass
class Inside:
    """Grids of mean maps, and by image the maps that can be laid over it: a name and a data URI each.

    `captions` are, by the image's file name, those of the results' rows: a map of another image that is called alike
    is not laid over it.
    """

    captions: Mapping[str, Collection[str]] = field(default_factory=dict)
    grids: list[ImageGrid] = field(default_factory=list)
    overlays: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def is_of_results(self, image: str, caption: str) -> bool:
        """Whether a map's image can be the results' image of that name."""
        return not caption or caption in self.captions.get(image, [caption])

    def add_overlay(self, image: str, name: str, source: str) -> None:
        """One more map for an image."""
        self.overlays.setdefault(image, []).append((name, source))

    def note_others(self, folder: Path, others: Sequence[str]) -> None:
        """Name the images whose maps were not laid over the results' images."""
        if others:
            self.notes.append(
                f"{folder.name}: the maps of {counted(len(others), 'image')} lie over no image of the results, which "
                f"has the same name and another caption, such as {others[0]}; the mean maps hold them."
            )


def gather(occlusion: Sequence[Path], flow: Sequence[Path], captions: Mapping[str, Collection[str]]) -> Inside:
    """Read the folders that `agci occlusion` and `agci flow` wrote."""
    inside = Inside(captions)
    for folder in occlusion:
        _add_occlusion(inside, folder)
    for folder in flow:
        _add_flow(inside, folder)
    return inside


def _add_occlusion(inside: Inside, folder: Path) -> None:
    found = read_folder(folder)
    label = f"occlusion{_lambda_of(folder / 'occlusion.jsonl')}"
    maps = occlusion_maps.aggregate(found.maps)
    means = [None if mean is None else _coarse(mean) for mean in maps.means]
    scale = common_scale(means, occlusion_maps.LABEL)
    notes = [f"on target {PERCENT.with_unit(share, '%')}, n = {share.n}" for share in maps.shares]
    said = (
        f"Share of the map on the target's cell: {PERCENT.with_unit(maps.overall, '%')} (its area: "
        f"{100 * np.mean(maps.areas):.1f} %), n = {maps.overall.n}; folder {folder.name}."
    )
    inside.grids.append(_grid(f"{label}: mean map by the target's position", means, notes, scale, said))
    others = [image.image for image in found.maps if not inside.is_of_results(image.image, image.caption)]
    for image in found.maps:
        if inside.is_of_results(image.image, image.caption):
            inside.add_overlay(image.image, label, map_uri(image.values, Scale(0, 1, "")))
    inside.note_others(folder, others)
    if found.unfinished:
        inside.notes.append(f"{len(found.unfinished)} unfinished images of {folder.name} were omitted.")


def _add_flow(inside: Inside, folder: Path) -> None:
    path = folder / "flow.jsonl" if folder.is_dir() else folder
    found = read_flows(path)
    summed = aggregate(found)
    for source in dict.fromkeys(maps.source for maps in summed):
        of_source = [maps for maps in summed if maps.source == source]
        levels, changes = scales(of_source)
        for maps in of_source:
            inside.grids.append(_flow_grid(maps, levels))
            if maps.change is not None and maps.mean_changes is not None:
                inside.grids.append(_change_grid(maps, maps.change, maps.mean_changes, changes, of_source[0].lam))
    rows = [flows.row for flows in found]
    inside.note_others(path, [row.image for row in rows if not inside.is_of_results(row.image, row.caption)])
    for flows in found:
        if not inside.is_of_results(flows.row.image, flows.row.caption):
            continue
        for source, recorded in flows.flows.items():
            scale = Scale(0, max(float(flow.values.max()) for flow in recorded), "")  # a weaker flow looks weaker
            for lam, flow in zip(flows.lambdas, recorded, strict=True):
                name = f"flow from {source}, lambda {lambda_text(lam)}"
                inside.add_overlay(flows.row.image, name, map_uri(flow.values, scale))


def _flow_grid(maps: FlowMaps, scale: Scale) -> ImageGrid:
    notes = [f"on target {PERCENT.with_unit(share, '%')}, n = {share.n}" for share in maps.shares.cells]
    said = (
        f"Flow on the target's cell: {PERCENT.with_unit(maps.shares.overall, '%')} of the image's (a ninth: 11.1 %), "
        f"n = {maps.shares.overall.n}. All lambdas of a source share one scale."
    )
    return _grid(f"flow from {maps.source}, lambda {lambda_text(maps.lam)}", maps.means, notes, scale, said)


def _change_grid(maps: FlowMaps, change: Measured, means: Maps, scale: Scale, first: float) -> ImageGrid:
    notes = [f"on target {POINTS.with_unit(cell, 'points')}, n = {cell.n}" for cell in change.cells]
    moved = POINTS.with_unit(change.overall, "points")
    said = f"Flow on the target's cell changes by {moved}, n = {change.overall.n}, paired."
    lambdas = f"lambda {lambda_text(maps.lam)} minus {lambda_text(first)}"
    return _grid(f"flow from {maps.source}, {lambdas}", means, notes, scale, said)


def _grid(heading: str, means: Maps, notes: Sequence[str], scale: Scale, said: str) -> ImageGrid:
    blank = np.full((1, 1), scale.low)
    images = []
    for cell, (mean, note) in enumerate(zip(means, notes, strict=True)):
        box = target_box(cell, 100, 100)
        percent = (box.left, box.top, box.right - box.left, box.bottom - box.top)
        source, words = (map_uri(blank, scale), "no image") if mean is None else (map_uri(mean, scale), note)
        images.append(PlaceImage(source, POSITIONS[cell].replace("_", " "), words, percent))
    return ImageGrid(heading, images, scale, said)


def _coarse(pixels: np.ndarray) -> np.ndarray:
    """A map in pixels at every so many of them: what the page shows is small."""
    rows, cols = (np.linspace(0, n - 1, min(n, COARSE)).round().astype(int) for n in pixels.shape)
    return pixels[np.ix_(rows, cols)]


def _lambda_of(result: Path) -> str:
    try:
        found = manifest.read(result)
    except InputError:
        return ""
    lam = found["settings"].get("lambda") if found else None
    return f", lambda {lambda_text(float(lam))}" if isinstance(lam, int | float) else ""
