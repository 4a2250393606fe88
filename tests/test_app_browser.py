"""The live page in a real Chromium: what a visitor clicks, and which hosts the page speaks to."""

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.app
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READY = 120  # seconds; a busy machine loads gradio slowly
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`agci app` on the embedded model, as a user starts it."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "report.html").write_text("<h1>a report</h1>")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["app", "--device", "cpu", "--port", str(port), "--report", str(folder / "report.html")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "transformers_agci.cli", *words], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(WAIT)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector(".agci-map button")
        yield page
        browser.close()


def margins(page: Any) -> list[str]:
    """The nine margins of the second map."""
    return [re.sub(r".*%, ", "", each) for each in labels(page, 1)]


def labels(page: Any, number: int) -> list[str]:
    buttons = page.locator(".agci-map").nth(number).locator("button")
    return [buttons.nth(k).get_attribute("aria-label") for k in range(buttons.count())]


def test_a_click_on_a_cell_and_a_move_of_lambda_change_the_maps(page: Any) -> None:
    assert [len(labels(page, number)) for number in range(3)] == [9, 9, 9]
    page.click(".agci-map button[data-cell='6']")
    page.wait_for_selector(".agci-map button[data-cell='6'][aria-pressed=true]")
    assert page.get_by_role("radio", name="bottom left").is_checked()
    before = margins(page)
    page.get_by_role("spinbutton", name="number input for lambda").fill("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("figcaption:has-text('lambda 1')")
    assert margins(page) != before
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {page.url.split("/")[2]}


def test_the_maps_are_reached_by_the_keyboard(page: Any) -> None:
    page.locator(".agci-map button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".agci-map button[data-cell='0'][aria-pressed=true]")


def test_attention_and_occlusion_show_a_picture(page: Any) -> None:
    page.get_by_role("button", name="Attention of this layer").click()
    attention = page.wait_for_selector("#inside img").get_attribute("src")
    page.get_by_role("button", name="Occlusion").click()
    page.wait_for_function("(before) => document.querySelector('#inside img')?.src !== before", arg=attention)


def test_cancel_ends_an_occlusion_that_still_waits_for_its_turn(page: Any) -> None:
    page.get_by_role("button", name="Attention of this layer").click()  # the model has one thing to do before
    page.get_by_role("button", name="Occlusion").click()
    page.wait_for_timeout(200)
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("text=Cancelled.")


def test_an_image_of_ones_own_is_asked_about_and_a_broken_one_named(page: Any, tmp_path: Path) -> None:
    before = labels(page, 0)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    page.set_input_files("input[type=file]", tmp_path / "red.png")
    page.wait_for_function(
        "(before) => document.querySelector('.agci-map button').getAttribute('aria-label') != before", arg=before[0]
    )
    assert labels(page, 0) != before


def test_a_broken_image_is_one_sentence_without_a_traceback(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    page.set_input_files("input[type=file]", tmp_path / "broken.png")
    page.wait_for_selector("text=the uploaded file")
    assert "Traceback" not in page.content()


def test_the_report_is_shown_in_its_tab(page: Any) -> None:
    page.get_by_role("tab", name="Report").click()
    page.frame_locator("iframe").get_by_text("a report").wait_for()


def test_no_file_of_the_server_is_readable(address: str) -> None:
    for path in ("/etc/passwd", str(Path(__file__).resolve())):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=READY)
        assert refused.value.code in (403, 404)
