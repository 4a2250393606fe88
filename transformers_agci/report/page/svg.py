"""A matplotlib figure as an SVG inside the page: its text stays text, its colours follow the page's looks.

The page's policy allows no style attributes, and two figures in one page must not share names: styles become
presentation attributes, and only what is referred to keeps its name.
"""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from transformers_agci.report.heatmap import GREY, INK, with_plain_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = (  # light and dark; told apart by colour-blind readers on white and on black
    (INK, "#e8e8e8"),
    ("#d55e00", "#ff9440"),
    ("#0072b2", "#56b4e9"),
    ("#00795c", "#2fcf9f"),
    ("#9c4a7f", "#e6a1c9"),
    ("#777777", "#999999"),
)
PAPER, RULE = "#ffffff", "#d5d8dd"
LOOKS = {INK: "--ink", GREY: "--soft", PAPER: "--paper", RULE: "--rule"}  # colours of a figure -> the page's variables
LOOKS |= {light: f"--s{number}" for number, (light, _) in enumerate(SERIES) if light not in LOOKS}
POINTS_PER_INCH = 72  # of an SVG; here a point is a pixel of the page
_OWN_FONT = ("font-family", "font")  # the page has its own


def style_sheet() -> str:
    """The series' colours as variables of the page."""
    looks = (f"{LOOKS[light]}: light-dark({light}, {dark});" for light, dark in SERIES if light != INK)
    return f":root {{ {' '.join(looks)} }}"


def inline_svg(figure: "Figure", title: str, words: Mapping[str, str]) -> str:
    """The markup of a figure that is drawn in the colours of `LOOKS`.

    `title` is what a screen reader says; `words` are, by an artist's gid, what it says when it is pointed at.
    """
    root = _drawn(with_plain_words(figure), title)
    parts = list(root.iter())
    used = {
        found for part in parts for value in part.attrib.values() for found in re.findall(r"#([mp][0-9a-f]+)", value)
    }
    for part in parts:
        name = part.attrib.pop("id", "")
        if name in used:
            part.set("id", name)
        _presentation(part)
        if name in words:
            said = ElementTree.Element("title")
            said.text = words[name]
            part.insert(0, said)
    size = root.get("viewBox", "").split()[2:]
    root.attrib.clear()
    for attribute, value in (
        ("viewBox", " ".join(("0 0", *size))),
        *zip(("width", "height"), size, strict=True),
        ("role", "img"),
        ("aria-label", title),
    ):
        root.set(attribute, value)
    return ElementTree.tostring(root, "unicode", short_empty_elements=False)


def _drawn(figure: "Figure", salt: str) -> Any:
    """The figure's elements, without namespaces and without what describes the file."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), io.StringIO() as file:
        nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, dpi=POINTS_PER_INCH, metadata=nobody)
        root = ElementTree.fromstring(file.getvalue())
    for part in root.iter():
        part.tag = part.tag.rpartition("}")[2]
        part.attrib = {name.rpartition("}")[2]: value for name, value in part.attrib.items()}
        part.text = part.text if part.tag == "text" else None
        part.tail = None
        for child in [child for child in part if child.tag.rpartition("}")[2] in ("style", "metadata")]:
            part.remove(child)
    return root


def _presentation(part: Any) -> None:
    """A style attribute as attributes of their own, its colours as the page's variables."""
    for rule in filter(None, map(str.strip, part.attrib.pop("style", "").split(";"))):
        name, _, value = rule.partition(": ")
        if name not in _OWN_FONT:
            part.set(name, f"var({LOOKS[value]})" if value in LOOKS else value)
