"""From what a page holds to its HTML, with a policy that lets nothing run or load but what the page itself brings."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

from transformers_agci.report.heatmap import COLUMN_NAMES, ROW_NAMES, Panel, Scale
from transformers_agci.report.page import colours, svg
from transformers_agci.report.page.plots import Plot
from transformers_agci.report.table import ABSENT, Table


@dataclass(frozen=True)
class CellMap:
    """A map whose cells open their items: `result` is its result's place among all, `answer` Yes or No.

    Of a difference map `result` is the one that is compared with the first.
    """

    panel: Panel
    answer: str
    result: int


class MapRow(NamedTuple):
    """Maps that belong side by side, under a heading."""

    heading: str
    maps: Sequence[CellMap]


class PlaceImage(NamedTuple):
    """A small map as a data URI, its words, and the target's box: left, top, width, height in percent."""

    source: str
    title: str
    note: str
    box: tuple[float, float, float, float] | None = None


class ImageGrid(NamedTuple):
    """Nine small maps on one scale, and a bar that says what the colours mean."""

    heading: str
    images: Sequence[PlaceImage]
    scale: Scale
    note: str


class Manifest(NamedTuple):
    """What a result was made with: the file's text, laid out."""

    label: str
    text: str


@dataclass(frozen=True)
class Page:
    """Everything the page shows, in its order.

    `data` goes into the page as JSON for the script that shows items; `image_folder` says whether thumbnails lie
    beside the page (they are in `data` otherwise).
    """

    title: str
    summary: str
    verdicts: Sequence[str]
    notes: Sequence[str]
    maps: Sequence[MapRow]
    margins: Sequence[MapRow]
    margin_plots: Sequence[Plot]
    roc: Plot | None
    tables: Sequence[Table]
    forest: Sequence[Plot]
    ruler: Sequence[Plot]
    ruler_table: Table | None
    inside: Sequence[ImageGrid]
    manifests: Sequence[Manifest]
    data: Mapping[str, Any]
    footer: str = ""
    image_folder: bool = False
    labels: Sequence[str] = field(default=())


def render(page: Page) -> str:
    """The HTML. The template escapes every text; our own files, the plots and the data's JSON go in as they are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("transformers_agci.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    script, style = _own("page.js"), f"{_own('style.css')}\n{svg.style_sheet()}\n{colours.style_sheet()}\n"
    content = environment.get_template("template.html").render(
        page=page,
        script=script,
        style=style,
        policy=policy(script, style, page.image_folder),
        data=json_for_script(page.data),
        colour_class=colours.colour_class,
        steps=range(colours.STEPS),
        rows_of=ROW_NAMES,
        columns_of=COLUMN_NAMES,
    )
    return content.lstrip()  # what the macros leave


def typeset(text: str) -> str:
    """Words of a terminal as a page shows them: a minus sign before a number, an arrow between two.

    >>> typeset("sd 0.28 -> 0.25, change -0.016 (-0.031 to -0.001), lambda-0 and a-1")
    'sd 0.28 → 0.25, change −0.016 (−0.031 to −0.001), lambda-0 and a-1'
    """
    if text == ABSENT:
        return "–"
    return re.sub(r"(?<![\w.-])-(?=\d)", "−", text).replace(" -> ", " → ").replace("second - first", "second − first")


def policy(script: str, style: str, image_folder: bool) -> str:
    """The content-security policy: our script and style by their hashes, images from the page or the folder beside it.

    Nothing else is allowed: no request, no frame, no form, no markup made from text by a script.
    """
    images = "data: 'self' file:" if image_folder else "data:"
    return (
        f"default-src 'none'; script-src 'sha256-{_hash(script)}'; style-src 'sha256-{_hash(style)}'; "
        f"img-src {images}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def json_for_script(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _own(name: str) -> str:
    return (resources.files("transformers_agci.report.page") / name).read_text("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
