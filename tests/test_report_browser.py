"""The report in a real Chromium: what a reader clicks and types, keyboard, print, and texts that attack the page."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_results import HOSTILE, write_results

from transformers_agci.cli import main
from transformers_agci.experiments.position.comparison import compare
from transformers_agci.experiments.position.results import read_results

pytestmark = pytest.mark.app
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser that must not reach for anything."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Make and open a report; `page.asked` are the addresses it asked for, `page.said` what its console says."""
    pages = []

    def open_report(folder: Path, *options: Any, scheme: str = "light", **kinds: Any) -> Any:
        results = write_results(folder, kinds.pop("items", 12), **kinds)
        words = ["--output", str(folder / "r.html"), "--draws", "20", *map(str, options)]
        assert main(["report", *map(str, results), *words]) == 0
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(WAIT)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("dialog", lambda dialog: page.said.append(dialog.message))
        page.goto((folder / "r.html").as_uri())
        page.wait_for_selector("#count:not(:empty)")
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.close()


def count(page: Any) -> tuple[int, int]:
    """How many rows are shown, of how many."""
    found = re.match(r"(\d+) of (\d+) ", page.locator("#count").inner_text())
    return int(found[1]), int(found[2])


def width(page: Any) -> int:
    """Pixels of the first card's image once it is decoded; an image that is not there raises."""
    return page.locator(".card img").first.evaluate(
        "async (image) => { await image.decode(); return image.naturalWidth; }"
    )


def cell(page: Any, map_number: int, cell_number: int) -> Any:
    return page.locator(".map").nth(map_number).locator(".cell").nth(cell_number)


def test_a_cell_opens_its_items_and_filters_agree_with_the_table(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, items=40, images=True)
    results = [read_results(tmp_path / f"answers.lam{lam}.jsonl") for lam in ("0", "0.5")]
    pair = compare(*results)
    for number, answer in ((2, "yes"), (5, "no")):  # maps: first, second, difference; Yes, then No
        test = getattr(pair, answer).mcnemar_cells[4]
        cell(page, number, 4).click()
        page.locator("#filter").select_option("became_right")
        assert count(page) == (test.gained, 40)
        page.locator("#filter").select_option("became_wrong")
        assert count(page) == (test.lost, 40)
        page.locator("#filter").select_option("changed")
        assert count(page) == (test.gained + test.lost, 40)
    page.locator("#answer").select_option("Yes")
    page.locator("#filter").select_option("nine")
    all_right = int((results[1].yes.correct.min(axis=1) == 1).sum())
    assert 0 < all_right < 40 and count(page) == (all_right, 40)
    page.locator("#cell").select_option("-1")
    assert count(page) == (9 * all_right, 360)
    page.locator("#search").fill("yes 3")
    page.locator("#filter").select_option("all")
    assert count(page) == (11 * 9, 11 * 9)  # items 3 and 30 to 39
    assert page.said == [] and {url.partition(":")[0] for url in page.asked} <= {"file", "data"}


def test_cards_show_image_caption_replies_and_margins_by_size_of_change(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, items=40, images=True)
    cell(page, 2, 7).click()
    page.locator("#sort").select_option("gain")
    tables = [read_results(tmp_path / f"answers.lam{lam}.jsonl").yes for lam in ("0", "0.5")]
    moved = tables[1].margin[:, 7] - tables[0].margin[:, 7]
    changed = [i for i in range(40) if tables[0].correct[i, 7] != tables[1].correct[i, 7]]
    order = sorted(changed, key=lambda item: -moved[item])
    cards = page.locator(".card")
    assert cards.locator(".caption").all_inner_texts() == [f"Yes {item}" for item in order[:24]]
    first = cards.first
    assert first.locator(".where").inner_text() == f"bottom center · {order[0]:05d}_7.jpg"
    margins = first.locator(".replies .number").all_inner_texts()[1:]
    assert [float(text.replace("−", "-")) for text in margins] == pytest.approx(
        [table.margin[order[0], 7] for table in tables], abs=0.006
    )
    first.locator("img").scroll_into_view_if_needed()
    assert width(page) > 0
    assert first.locator("rect").count() == 1  # the target's cell
    first.locator(".picture").click()
    assert page.locator("#large").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()


def test_pages_are_turned(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, items=12)
    page.locator("#filter").select_option("all")
    assert page.locator("#page").inner_text() == "page 1 of 5" and page.locator(".card").count() == 24
    assert page.locator("#before").is_disabled()
    for _ in range(4):
        page.locator("#next").click()
    assert page.locator("#page").inner_text() == "page 5 of 5" and page.locator(".card").count() == 108 - 96
    assert page.locator("#next").is_disabled()


def test_the_keyboard_alone_reaches_everything(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to what was found"
    cell(page, 0, 0).focus()
    for key, expected in (
        ("ArrowRight", "1"),
        ("ArrowDown", "4"),
        ("ArrowLeft", "3"),
        ("ArrowUp", "0"),
        ("ArrowUp", "0"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.cell") == expected
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "items-title"
    assert "top left" in page.locator("#count").inner_text()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "answer"


def test_a_screen_reader_finds_names_and_headings(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, images=True)
    tree = page.locator("body").aria_snapshot()
    assert re.search(r'table "baseline \(lambda 0\), Yes rows', tree)
    assert re.search(r"button \"[\d.]+ \d+ to \d+\"", tree) and 'heading "Items" [level=2]' in tree
    assert 'combobox "Position"' in tree and "status: " in tree
    nameless = page.evaluate(
        "[...document.querySelectorAll('img')].filter((image) => !image.alt).length"
        " + [...document.querySelectorAll('body > * svg:not([aria-hidden]):not([aria-label])')].length"
    )
    assert nameless == 0


def test_dark_light_and_print(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(22, 24, 28)"
    page.locator("#look").select_option("light")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.locator("#look").select_option("")
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert not page.locator("#choice").is_visible() and page.locator(".map").first.is_visible()
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="screen")
    page.locator("#look").select_option("dark")
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_the_sections_stay_above_the_form_while_items_are_scrolled(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path)
    page.locator(".card").nth(7).scroll_into_view_if_needed()
    nav, form = (page.locator(each).bounding_box() for each in ("nav", "#choice"))
    assert nav["y"] == pytest.approx(0, abs=1) and form["y"] == pytest.approx(nav["height"], abs=6)
    assert form["y"] <= nav["height"]  # no card is seen between them


def test_maps_keep_their_colours_where_the_system_forces_its_own(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path)
    colours = "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    found = page.locator(".cell, .bar i").evaluate_all(colours)
    page.emulate_media(forced_colors="active")
    assert page.locator(".cell, .bar i").evaluate_all(colours) == found and len(set(found)) > 20


def test_no_table_is_cut_where_the_page_is_printed(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 between Chromium's margins, in its pixels
    ends = "tables => tables.map(table => table.getBoundingClientRect().right)"
    found = page.locator(".numbers").evaluate_all(ends)
    assert len(found) >= 6 and max(found) <= 718


def test_plots_are_as_large_as_they_were_drawn(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path)
    sizes = "svgs => svgs.map(svg => [svg.getBoundingClientRect().width, Number(svg.getAttribute('width'))])"
    found = page.locator("section[aria-labelledby] .plot > svg").evaluate_all(sizes)
    assert len(found) >= 6 and all(shown == pytest.approx(drawn, abs=1) and drawn > 200 for shown, drawn in found)


@pytest.mark.parametrize("name", ["", "a model with a name of several words ", "checkpoint_of_a_long_run/step_"])
def test_nothing_runs_out_of_a_phone_s_screen(opened: Any, tmp_path: Path, name: str) -> None:
    labels = ["--labels", *(3 * name + number for number in "12")] if name else []
    page = opened(tmp_path, *labels)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_hostile_captions_names_replies_and_manifests_run_nothing(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, "--labels", HOSTILE[1], HOSTILE[3], hostile=True, items=len(HOSTILE), images=True)
    title = page.title()
    page.locator("#filter").select_option("all")
    shown = set()
    while True:
        shown |= {*page.locator(".caption").all_text_contents(), *page.locator(".reply").all_text_contents()}
        if page.locator("#next").is_disabled():
            break
        page.locator("#next").click()
    assert set(HOSTILE[:6]) <= shown  # the last two are shown with replacement signs, or cut
    page.locator("#manifests summary").first.click()
    assert HOSTILE[0] in json.loads(page.locator("#manifests pre").first.text_content())["notes"]["model"]
    assert page.title() == title and title not in ("owned", "1")
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], img[src=x], iframe').length") == 0
    assert {url.partition(":")[0] for url in page.asked} <= {"file", "data"} and page.said == []


def test_the_policy_stops_what_gets_into_the_page(opened: Any, tmp_path: Path) -> None:
    """Were a text ever taken for markup, its script, style, image and request would still not run."""
    page = opened(tmp_path)
    page.evaluate(
        "const s = document.createElement('script'); s.id = 'late';"
        "try { s.textContent = 'document.title = 1'; } catch { document.body.dataset.trusted = 'refused'; }"
    )
    assert page.evaluate("document.body.dataset.trusted") == "refused"
    refused = page.evaluate(
        "(async () => { const i = new Image(); i.src = 'https://example.invalid/x.png'; document.body.append(i);"
        " try { await fetch('https://example.invalid/'); } catch { return 'refused'; } return 'sent'; })()"
    )
    assert refused == "refused"
    assert sum("Content Security Policy" in text for text in page.said) >= 2


def test_images_in_a_folder_are_shown(opened: Any, tmp_path: Path) -> None:
    page = opened(tmp_path, "--images", "folder", images=True)
    page.locator("#filter").select_option("all")
    page.locator(".card img").first.scroll_into_view_if_needed()
    assert width(page) > 0
    assert page.locator(".card img").first.get_attribute("src").startswith("r_images/") and page.said == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_its_opening_is_measured(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "perf" / "report_opening.py"
    words = ["--items", "20", "--openings", "1", "--folder", str(tmp_path), "--chromium", str(CHROMIUM)]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        done.stdout.count("plots cost") == 4 and (tmp_path / "none_without_plots.html").read_text().count("<svg") == 0
    )
    assert (tmp_path / "thumbnails.html").read_text().count("data:image/jpeg") > 9
