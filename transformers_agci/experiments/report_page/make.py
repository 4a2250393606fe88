"""`agci report` from result files to one HTML file: read, measure, lay out, write."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers_agci import __version__
from transformers_agci.errors import InputError, counted, printable
from transformers_agci.experiments.defaults import IMAGES, THUMBNAILS, Images
from transformers_agci.experiments.position.evidence import Evidence, gather
from transformers_agci.experiments.position.measures import ResamplingConfig
from transformers_agci.experiments.position.metrics import load_all, load_controls, notes_of_controls
from transformers_agci.experiments.position.results import ProbeResult
from transformers_agci.experiments.report_page import sections
from transformers_agci.experiments.report_page.answers import Answers, Thumbnails, thumbnails
from transformers_agci.experiments.report_page.inside import Inside
from transformers_agci.experiments.report_page.inside import gather as gather_inside
from transformers_agci.experiments.report_page.ruler import ruler_plots
from transformers_agci.report.page.images import FOLDER_SIDE, SIDE, jpeg_uri
from transformers_agci.report.page.render import Manifest, Page, render
from transformers_agci.storage import manifest
from transformers_agci.storage.atomic import cannot_write, write_atomic
from transformers_agci.storage.overlap import Named, refuse_overlap
from transformers_agci.storage.reading import is_folder


@dataclass(frozen=True)
class ReportOptions:
    """What the page is made from.

    Attributes:
        results: result files, the baseline first, of the same items.
        img_path: the folder of the rows' images; None takes the one that the first manifest names.
        images: thumbnails of what changed in the page, of every image in a folder beside it, or none.
        thumbnails: most of them in the page.
        margin: of equivalence, a share (0..1), stated beforehand.
    """

    results: Sequence[Path]
    output: Path
    negatives: Sequence[Path | None] = ()
    labels: Sequence[str] = ()
    title: str = ""
    img_path: Path | None = None
    images: Images = IMAGES
    thumbnails: int = THUMBNAILS
    occlusion: Sequence[Path] = ()
    flow: Sequence[Path] = ()
    ruler: Path | None = None
    text_only: Sequence[Path] = ()
    blank_image: Sequence[Path] = ()
    margin: float | None = None
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)


@dataclass(frozen=True)
class Written:
    """The page, how large it is in bytes, how many thumbnails it has, and what the user should know."""

    path: Path
    size: int
    thumbnails: int
    remarks: list[str]


def write_page(options: ReportOptions) -> Written:
    """Write the page, and the folder of thumbnails beside it where that is asked for.

    InputError, before anything is read, where the page would be written over something else.
    """
    if not options.results:
        raise InputError("`results` is empty; give at least one result.")
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"`output` is a page and must end in .html, but is {options.output}.")
    read = (*options.results, *(path for path in options.negatives if path), *options.text_only, *options.blank_image)
    refuse_overlap([Named("output", options.output)], [Named("results", path) for path in read])
    results = load_all(options.results, options.negatives, options.labels, keep_rows=True)
    evidence = gather(results, options.margin, options.resampling)
    inside = gather_inside(options.occlusion, options.flow, _captions(results))
    answers = Answers(results)
    data = answers.data()
    shown, remarks = _thumbnails(options, answers, data, list(inside.overlays))
    page = _page(options, results, evidence, inside, data | _images(options, shown, remarks, inside, data))
    content = render(page).encode("utf-8", "backslashreplace")
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if options.images == "folder":
            _write_folder(_folder(options.output), shown)
        write_atomic(options.output, content)
    except OSError as error:
        raise cannot_write(options.output, error) from error
    return Written(options.output, len(content), len(shown.content), [*inside.notes, *remarks])


def _captions(results: Sequence[ProbeResult]) -> dict[str, set[str]]:
    """By image the captions of its rows: that of its target, and of its No row."""
    found: dict[str, set[str]] = {}
    for row in (row for result in results for row in result.rows):
        found.setdefault(row.image, set()).add(row.caption)
    return found


def _thumbnails(
    options: ReportOptions, answers: Answers, data: Mapping[str, Any], with_maps: Sequence[str]
) -> tuple[Thumbnails, list[str]]:
    """In the page first the images that a map can be laid over, then those of changed or wrong answers."""
    nothing = Thumbnails({}, [], None)
    if options.images == "none":
        return nothing, []
    folder = options.img_path or _recorded_folder(options.results[0])
    if folder is None:
        return nothing, ["The page has no images: no manifest names a folder of images that is there; give `img_path`."]
    if not folder.is_dir():
        raise InputError(f"`img_path`: there is no folder {folder}; give the folder that holds the rows' images.")
    in_folder = options.images == "folder"
    there = set(data["images"])
    first = [name for name in with_maps if name in there]
    worth = dict.fromkeys(chain(first, answers.failures()))
    names = data["images"] if in_folder else list(islice(worth, options.thumbnails))
    shown = thumbnails(names, data["images"], folder, FOLDER_SIDE if in_folder else SIDE, results_shape(data))
    remarks = []
    if shown.unreadable:
        few = ", ".join(shown.unreadable[:3])
        remarks.append(f"{len(shown.unreadable)} of {len(names)} images could not be read, such as {few}.")
    return shown, remarks


def results_shape(data: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the maps."""
    rows, columns = data["shape"]
    return rows, columns


def _recorded_folder(result: Path) -> Path | None:
    """The image folder that the manifest of a result names, where it is there."""
    try:
        found = manifest.read(result)
    except InputError:
        return None
    name = found["notes"].get("img_path") if found else None
    if not isinstance(name, str):
        return None
    parts = Path(name).parts
    # A relative one was relative to where the run was started; a result that moved has its images beside it.
    beside = (result.parent.joinpath(*parts[start:]) for start in range(1, len(parts)))
    return next((folder for folder in (Path(name), *beside) if is_folder(folder)), None)


def _images(
    options: ReportOptions, shown: Thumbnails, remarks: list[str], inside: Inside, data: Mapping[str, Any]
) -> dict[str, Any]:
    in_folder = options.images == "folder" and bool(shown.content)
    numbers = {name: number for number, name in enumerate(data["images"])}
    without = "No image: the page was made without images."
    if shown.content:
        without = (
            "No image: it could not be read."
            if in_folder
            else (
                f"No image: the page holds {len(shown.content)} only, of changed or wrong answers and under maps; "
                "a report with its images in a folder has all."
            )
        )
    elif remarks:
        without = "No image could be read."
    return {
        "thumbnails": {} if in_folder else {number: jpeg_uri(content) for number, content in shown.content.items()},
        "folder": _folder(options.output).name if in_folder else "",
        "in_folder": sorted(shown.content) if in_folder else [],
        "boxes": shown.boxes,
        "without_image": without,
        "overlays": {numbers[name]: maps for name, maps in inside.overlays.items() if name in numbers},
    }


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.stem}_images")


def _write_folder(folder: Path, shown: Thumbnails) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in shown.content.items():
        write_atomic(folder / f"{number}.jpg", content, sync=False)


def _page(
    options: ReportOptions,
    results: Sequence[ProbeResult],
    evidence: Evidence,
    inside: Inside,
    data: Mapping[str, Any],
) -> Page:
    ruler, ruler_table = ruler_plots(options.ruler) if options.ruler else ([], None)
    controls = load_controls(options.text_only, options.blank_image)
    cells = len(results[0].cells)
    labels = [result.label for result in results]
    title = "Position probe: " + " against ".join(filter(None, [labels[0], listed(labels[1:])]))
    return Page(
        title=printable(options.title or title),
        summary=f"{counted(len(results), 'result')} on {evidence.items} items in {cells} positions",
        verdicts=_printable(sections.verdicts(evidence)),
        notes=_printable([*evidence.notes, *notes_of_controls(controls), *inside.notes]),
        maps=sections.map_rows(evidence),
        margins=sections.margin_rows(evidence),
        margin_plots=sections.margin_plots(evidence),
        roc=sections.roc_plot(results, evidence),
        tables=sections.tables(evidence, controls),
        forest=sections.forest(evidence),
        ruler=ruler,
        ruler_table=ruler_table,
        inside=inside.grids,
        manifests=list(_manifests(options, labels)),
        data=data,
        footer=f"agci report, transformers-agci {__version__}. The page loads nothing from elsewhere.",
        image_folder=bool(data["folder"]),
    )


def listed(labels: Sequence[str]) -> str:
    """Labels as words.

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))


def _printable(texts: Sequence[str]) -> list[str]:
    return [printable(text) for text in texts]


def _manifests(options: ReportOptions, labels: Sequence[str]) -> list[Manifest]:
    """What lies beside the results, as it is; a damaged one is said to be so."""
    found = []
    named = [(f"{label}: {path.name}", path) for label, path in zip(labels, options.results, strict=True)]
    named += [
        (path.name, path) for path in (*filter(None, options.negatives), *options.text_only, *options.blank_image)
    ]
    named += [(f"occlusion: {folder.name}", folder / "occlusion.jsonl") for folder in options.occlusion]
    named += [(f"flow: {folder.name}", folder / "flow.jsonl") for folder in options.flow]
    for label, path in named:
        try:
            content = manifest.read(path)
        except InputError as error:
            content = {"damaged": str(error)}
        if content is not None:
            found.append(Manifest(printable(label), json.dumps(content, indent=2)))
    return found
