"""`agci report`: what stands in the page, how large it is, what it allows, and how hostile texts end."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_results import HOSTILE, write_results

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.comparison import compare
from transformers_agci.experiments.position.results import read_results
from transformers_agci.experiments.report_page.ruler import ruler_plots
from transformers_agci.report.page.columns import MOST_LETTERS, Texts, column, margins
from transformers_agci.report.page.plots import Point, Series, interval_plot, line_plot
from transformers_agci.report.page.render import typeset
from transformers_agci.statistics.signal_detection import auc_without_each, roc

DRAWS = ["--draws", "20"]


class Elements(html.parser.HTMLParser):
    """The page's elements as a browser's parser sees them, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.raw: list[tuple[str, dict, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[Any]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(("/" + tag, {}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.raw.append((*self.tags[-1], data))

    def data(self) -> dict:
        return json.loads(next(text for tag, names, text in self.raw if names.get("type") == "application/json"))


def report(folder: Path, *options: Any, **kinds: Any) -> tuple[str, Elements]:
    """The page of two results of six items."""
    results = write_results(folder, kinds.pop("items", 6), **kinds)
    assert main(["report", *map(str, results), "--output", str(folder / "r.html"), *DRAWS, *map(str, options)]) == 0
    text = (folder / "r.html").read_text("utf-8")
    return text, Elements(text)


def numbers(entry: dict) -> np.ndarray:
    kinds = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}
    return np.frombuffer(base64.b64decode(entry["data"]), dtype=kinds[entry["type"]])


@pytest.mark.slow
def test_the_page_holds_every_answer_and_says_the_verdict(tmp_path: Path) -> None:
    text, page = report(tmp_path, items=30)
    results = [read_results(tmp_path / f"answers.lam{lam}.jsonl") for lam in ("0", "0.5")]
    pair, data = compare(*results), page.data()
    assert html.unescape(text).count(typeset(pair.verdict)) == 1
    assert data["results"] == ["baseline (lambda 0)", "AGCI (lambda 0.5)"] and data["cells"] == list(POSITIONS)
    for answer, right in (("Yes", 2), ("No", 1)):
        first, second = (numbers(said) == right for said in data["sides"][answer]["said"])
        for cell, test in enumerate(getattr(pair, answer.lower()).mcnemar_cells):
            became = (~first & second)[cell::9].sum(), (first & ~second)[cell::9].sum()
            assert became == (test.gained, test.lost)
    side = data["sides"]["Yes"]
    assert [data["captions"][k] for k in numbers(side["caption"])[::9]] == [f"Yes {item}" for item in range(30)]
    assert data["images"][numbers(side["image"])[9 * 7 + 4]] == "00007_4.jpg"
    assert np.array_equal(numbers(side["margin"][1]), results[1].yes.margin.ravel().astype("f4"))


def test_every_cell_of_every_map_is_a_button(tmp_path: Path) -> None:
    _, page = report(tmp_path)
    buttons = [names for tag, names in page.tags if tag == "button" and "data-cell" in names]
    accuracy = {(b["data-answer"], b["data-result"], b["data-cell"]) for b in buttons}
    assert len(accuracy) == 2 * 2 * 9  # answers x results x cells
    assert len(buttons) == 2 * (3 + 2) * 9  # maps of accuracy and difference, then of margins
    assert all(re.search(r"\b([ad]\d+|blank)\b", b["class"]) for b in buttons)


def test_scripts_run_by_their_hash_only_and_nothing_is_loaded(tmp_path: Path) -> None:
    text, page = report(tmp_path, images=True)
    policy = next(names["content"] for tag, names in page.tags if names.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "img-src data:;" in policy
    assert [tag for tag, _, _ in page.raw] == ["style", "script", "script"]
    for tag, names, content in page.raw:
        if names.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [names for _, names in page.tags if {"style", "onclick", "onload", "onerror"} & set(names)]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)


@pytest.mark.slow
def test_hostile_texts_are_text(tmp_path: Path) -> None:
    """As a parser sees it the page has the elements of a harmless one; the data hold the texts as they are."""
    results = {}
    for kind in (False, True):
        _, results[kind] = report(tmp_path / str(kind), hostile=kind, items=len(HOSTILE), images=True)
    drawn = {"svg", "g", "defs", "use", "path", "text", "title", "clippath", "rect"}
    ours = {"td", "tr", "th", "li", "span", *drawn}  # follow the values
    kept = [[tag for tag, _ in page.tags if tag.removeprefix("/") not in ours] for page in results.values()]
    assert kept[0] == kept[1]
    assert len([1 for tag, _ in results[True].tags if tag == "script"]) == 2
    data = results[True].data()
    assert {*HOSTILE[:-1]} <= {*data["captions"]} and {*HOSTILE[:-1]} <= {*data["replies"]}
    assert all(len(text) < MOST_LETTERS + 30 for text in data["captions"])
    assert data["images"][0].startswith("<img src=x") and data["thumbnails"]


def test_hostile_labels_and_titles_are_text(tmp_path: Path) -> None:
    text, page = report(tmp_path, "--labels", HOSTILE[0], HOSTILE[1], "--title", HOSTILE[3])
    assert len([1 for tag, _ in page.tags if tag in ("script", "img")]) == 2
    assert page.data()["results"] == list(HOSTILE[:2])
    assert "<script>document" not in text and "<img src=x" not in text


@pytest.mark.slow
def test_images_of_changed_answers_in_the_page_or_of_all_in_a_folder(tmp_path: Path) -> None:
    _, page = report(tmp_path / "page", images=True)
    data = page.data()
    changed = set()
    for side in data["sides"].values():
        first, second = (numbers(said) for said in side["said"])
        changed |= set(numbers(side["image"])[first != second].tolist())
    assert {int(number) for number in data["thumbnails"]} == changed and len(changed) < 54
    assert data["boxes"][4] == pytest.approx([100 / 3] * 4, abs=0.01)
    _, page = report(tmp_path / "few", "--thumbnails", 3, images=True)
    assert len(page.data()["thumbnails"]) == 3
    text, page = report(tmp_path / "folder", "--images", "folder", images=True)
    data = page.data()
    files = sorted((tmp_path / "folder" / "r_images").iterdir(), key=lambda path: int(path.stem))
    assert [int(file.stem) for file in files] == data["in_folder"] == list(range(54)) and not data["thumbnails"]
    assert "img-src data: 'self' file:" in html.unescape(text)
    with Image.open(files[0]) as image:
        assert image.format == "JPEG"


@pytest.mark.slow
def test_images_that_cannot_be_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write_results(tmp_path, 6, images=True)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"not an image")
    assert main(["report", *map(str, results), "--output", str(tmp_path / "r.html"), *DRAWS]) == 0
    assert re.search(r"(\d+) of \1 images could not be read, such as 0000\d_\d\.jpg", capsys.readouterr().out)
    assert main(["report", *map(str, results), "--img_path", str(tmp_path / "nowhere"), *DRAWS]) == 2
    assert "--img_path: there is no folder" in capsys.readouterr().err


def test_one_result_without_margins_of_yes_rows(tmp_path: Path) -> None:
    """A file of the published scripts: no margins, no manifest; filters and sentences speak of one result."""
    path, _ = write_results(tmp_path, 6, margin=False)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    alone = tmp_path / "published.json"
    alone.write_text("".join(json.dumps(row) + "\n" for row in rows if row["answer"] == "Yes"))
    assert main(["report", str(alone), "--output", str(tmp_path / "r.html"), *DRAWS]) == 0
    text = (tmp_path / "r.html").read_text()
    page = Elements(text)
    assert list(page.data()["sides"]) == ["Yes"] and page.data()["sides"]["Yes"]["margin"] == [None]
    assert "On 6 items published answers " in text and "ROC of the margins" not in text
    assert "No manifest lies beside the results" in text


@pytest.mark.slow
def test_ruler_and_flow_stand_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ruler = Path(__file__).parents[1] / "docs" / "ruler" / "ruler.json"
    grid = (np.arange(81) / 81).reshape(9, 9).tolist()
    results = write_results(tmp_path, 6, images=True)
    with (tmp_path / "flow.jsonl").open("w") as file:
        for item in range(2):
            for cell, position in enumerate(POSITIONS):
                entries = [
                    {
                        "lambda": lam,
                        "prediction": "Yes",
                        **{
                            s: {
                                "on_picture": 0.1,
                                "on_target": 0.2 + 0.1 * item + lam / 10,
                                "map": (np.array(grid) * (1 - lam)).tolist(),
                            }
                            for s in ("text", "answer")
                        },
                    }
                    for lam in (0.0, 0.5)
                ]
                row = {
                    "id": 9 * item + cell,
                    "image": f"{item:05d}_{cell}.jpg",
                    "caption": f"Yes {item}",
                    "position": position,
                }
                file.write(json.dumps({**row, "answer": "Yes", "flows": entries}) + "\n")
    words = ["--ruler", str(ruler), "--flow", str(tmp_path / "flow.jsonl"), "--output", str(tmp_path / "r.html")]
    assert main(["report", *map(str, results), *words, *DRAWS]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "The ruler: biases of known size" in text and "known repair" in text
    assert text.count("flow from text, lambda 0.5 minus 0") == 1 and "on target +5.0 points [" in text
    overlays = Elements(text).data()["overlays"]
    assert len(overlays) == 18 and [name for name, _ in overlays["0"]] == [
        f"flow from {source}, lambda {lam}" for source in ("text", "answer") for lam in ("0", "0.5")
    ]
    stronger, weaker = (uri for name, uri in overlays["0"] if "text" in name)
    assert stronger != weaker  # half the flow on the same scale
    assert set(overlays) <= set(Elements(text).data()["thumbnails"])  # whether their answers changed or not
    of_others = (tmp_path / "flow.jsonl").read_text().replace("Yes 1", "another image")
    (tmp_path / "flow.jsonl").write_text(of_others)
    assert main(["report", *map(str, results), "--thumbnails", "3", *words, *DRAWS]) == 0
    assert "flow.jsonl: the maps of 9 images lie over no image of the results" in capsys.readouterr().out
    assert len(Elements((tmp_path / "r.html").read_text()).data()["overlays"]) == 9
    (tmp_path / "flow.jsonl").write_text(of_others.replace("another image", "Yes 1"))
    assert main(["report", *map(str, results), "--thumbnails", "3", *words, *DRAWS]) == 0
    assert list(Elements((tmp_path / "r.html").read_text()).data()["thumbnails"]) == ["0", "1", "2"]
    (tmp_path / "wrong.json").write_text("{}")
    assert main(["report", *map(str, results), "--ruler", str(tmp_path / "wrong.json"), *DRAWS]) == 2
    assert "give --ruler the ruler.json that agci ruler wrote" in capsys.readouterr().err


def test_columns_take_as_few_bytes_as_their_values_need() -> None:
    assert [column([0, most])["type"] for most in (255, 256, 65535, 65536)] == ["u8", "u16", "u16", "u32"]
    assert margins(np.array([np.nan, np.nan])) is None
    found = numbers(margins(np.array([-4.25, 1e9, 2.5, np.nan])))  # a far one does not coarsen the others
    assert found[[0, 2]].tolist() == [-4.25, 2.5] and np.isnan(found[3])
    texts = Texts()
    assert [texts.number(text) for text in ("a", "b", "a")] == [0, 1, 0] and texts.all == ["a", "b"]


def test_one_result_is_judged_by_its_margins_as_in_the_tables(tmp_path: Path) -> None:
    """All answers are right, so that accuracies show nothing; the margins differ between positions."""
    rng, path = np.random.default_rng(0), tmp_path / "a.jsonl"
    with path.open("w") as file:
        for item in range(20):
            for cell, position in enumerate(POSITIONS):
                row = {"image": f"{item:05d}_{cell}.jpg", "caption": f"c {item}", "position": position}
                value = 3 + 0.2 * cell + 0.1 * rng.normal()
                file.write(json.dumps({**row, "answer": "Yes", "prediction": "Yes", "margin": value}) + "\n")
    assert main(["report", str(path), "--output", str(tmp_path / "r.html"), *DRAWS]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "on Yes rows the margin depends on the position (sd over the cells 0.5" in text and " logits, by" in text
    assert "no effect of the position" not in text


@pytest.mark.parametrize("value", [1.25, 0.0])
def test_equal_margins_are_drawn(tmp_path: Path, value: float) -> None:
    """They have no interval, from which a scale could be had."""
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for item in range(3):
            for cell, position in enumerate(POSITIONS):
                row = {"image": f"{item:05d}_{cell}.jpg", "caption": f"c {item}", "position": position}
                file.write(json.dumps({**row, "answer": "Yes", "prediction": "Yes", "margin": value}) + "\n")
    assert main(["report", str(path), "--output", str(tmp_path / "r.html"), *DRAWS]) == 0
    assert f"mean {value:.2f}, n = 27" in (tmp_path / "r.html").read_text()


def test_rows_with_long_names_stand_apart() -> None:
    """A name of five lines takes the height of five lines."""
    heights = []
    for name in ("short", "word " * 36):
        plot = interval_plot("t", [name, name], [Series("s", [Point(1.0), Point(2.0)])])
        heights.append(float(re.search(r'<svg [^>]*height="([0-9.]+)"', plot.svg)[1]))
    assert heights[1] - heights[0] == pytest.approx(2 * (5 * 15 - 26), abs=1)


def test_one_result_is_not_told_about_equivalence(tmp_path: Path) -> None:
    first, second = map(str, write_results(tmp_path, 6))
    for files, times in (([first], 0), ([first, second], 1)):
        assert main(["report", *files, "--output", str(tmp_path / "r.html"), *DRAWS]) == 0
        assert (tmp_path / "r.html").read_text().count("No equivalence is tested") == times


def test_the_roc_encloses_the_auc() -> None:
    rng = np.random.default_rng(1)
    yes, no = (rng.normal(mean, 1, (40, 9)).round(1) for mean in (1, 0))  # rounded: ties
    yes[3, 4] = np.nan
    false_alarms, hits = roc(yes, no)
    assert (false_alarms[0], hits[0], false_alarms[-1], hits[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(hits, false_alarms) == pytest.approx(auc_without_each(yes, no)[0])


def test_a_page_is_never_written_over_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_results(tmp_path, 6)
    before = first.read_bytes()
    assert main(["report", str(first), str(second), "--output", str(first), *DRAWS]) == 2
    assert "would be written over" in capsys.readouterr().err and first.read_bytes() == before


def test_images_that_moved_with_their_result_are_found(tmp_path: Path) -> None:
    results = write_results(tmp_path / "there", 6, images=True)
    for path in results:
        described = path.with_name(path.stem + ".manifest.json")
        described.write_text(described.read_text().replace(str(tmp_path / "there"), "run"))
    assert main(["report", *map(str, results), "--output", str(tmp_path / "r.html"), *DRAWS]) == 0
    assert Elements((tmp_path / "r.html").read_text()).data()["thumbnails"]


def test_letters_that_turn_the_text_around_are_written_out_in_labels(tmp_path: Path) -> None:
    text, _ = report(tmp_path, "--labels", "first", "turned \u202e around")
    assert "turned \\u202e around" in html.unescape(text) and "\u202e" not in html.unescape(text)


def test_plots_are_text_in_the_page_s_colours_and_share_no_names() -> None:
    points = [Point(0.5, 0.25, 0.75), Point(-1.0), Point(float("nan"))]
    label = f"{HOSTILE[0]} $x$ \x07"
    forest = interval_plot("a forest", ["first", label, "none"], [Series("estimate", points)], zero=True)
    lines = line_plot(
        "lines", [Series(label, points), Series("chance", points[:1], dashed=True)], x_label="x", y_label="y"
    )
    for plot, title, marks in ((forest, "a forest: estimate, first: 0.5, 0.25 to 0.75; ", 2), (lines, "lines: ", 3)):
        page = Elements(plot.svg)
        assert page.tags[0][1]["aria-label"].startswith(title)
        assert [tag for tag, _ in page.tags].count("title") == marks  # a point without a value is not drawn
        assert not [names for _, names in page.tags if {"style", "onload"} & set(names)]
        colours = {names[kind] for _, names in page.tags for kind in ("fill", "stroke") if kind in names}
        assert colours <= {"none", *(f"var(--{name})" for name in ("ink", "soft", "rule", "paper", "s1"))}
        assert r"$x$ \x07" in html.unescape(plot.svg) and "<script" not in plot.svg
    names = [re.findall(r' id="([^"]+)"', plot.svg) for plot in (forest, lines)]
    assert all(names) and not set(names[0]) & set(names[1])


ODD_CONDITIONS: list[tuple[str, Any, str]] = [
    ("bias", None, '"bias" must be a text'),
    ("beta", "1", '"beta" must be a number'),
    ("position_p", 2, '"position_p" must be a number from 0 to 1'),
    ("unevenness", {"auc": None}, 'the field "margin" is missing'),
    ("unevenness", {"margin": {"estimate": 1, "low": None, "high": 2}, "auc": None}, '"low" must be a number'),
    ("unevenness", {"margin": {"estimate": 1, "low": 2, "high": 3}, "auc": None}, "does not lie between"),
    ("accuracy", {"yes": {"estimate": float("nan")}}, '"estimate" must be a number from 0 to 1'),
    ("against nothing", {}, 'the field "verdict" is missing'),
]


@pytest.mark.parametrize(("field", "value", "said"), ODD_CONDITIONS)
def test_a_ruler_that_no_run_writes_is_named(tmp_path: Path, field: str, value: Any, said: str) -> None:
    content = json.loads((Path(__file__).parents[1] / "docs" / "ruler" / "ruler.json").read_text())
    name, condition = next(iter(content["conditions"].items()))
    (tmp_path / "r.json").write_text(json.dumps({"conditions": {name: condition | {field: value}}}))
    with pytest.raises(InputError, match=rf"r\.json, condition '{name}'.*{said}.*ruler\.json that agci ruler wrote"):
        ruler_plots(tmp_path / "r.json")
