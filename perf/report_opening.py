"""How long the report of 10,000 items x 9 positions x 2 results takes to open, and what its plots cost of that.

    python perf/report_opening.py [--items 10000] [--openings 5] [--folder F] [--chromium /usr/bin/chromium]

Makes two result files (80 MB each) and two pages in the folder, unless they are there: one without images, one with 400
thumbnails of noisy images. Each page is opened in a headless Chromium as often as asked, in turn with a copy that has
no plots. Prints seconds until the first items stand in the page, and until the browser has painted it. Needs
playwright.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from evidence_speed import write_results
from PIL import Image

NOISY = 16  # different images; the thumbnails' names are links to them
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def write_images(folder: Path, items: int) -> Path:
    """An image for every item and cell: noise on smooth patches, which JPEG packs as it packs photographs."""
    if folder.exists():
        return folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NOISY):
        patches = rng.integers(0, 256, (12, 12, 3)).repeat(70, axis=0).repeat(70, axis=1)
        noisy = np.clip(patches + rng.normal(0, 25, patches.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"noise{number}.jpg")
    for item in range(items):
        for cell in range(9):
            os.link(folder / f"noise{(item + cell) % NOISY}.jpg", folder / f"{item:06d}_{cell}.jpg")
    return folder


def make_page(page: Path, results: list[Path], *words: str) -> None:
    """`agci report` as a process of its own, unless the page is there."""
    if page.exists():
        return
    started = time.perf_counter()
    command = [sys.executable, "-m", "transformers_agci.cli", "report", *map(str, results), "--output", str(page)]
    subprocess.run([*command, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    print(f"{page.name}: made in {time.perf_counter() - started:.1f} s", flush=True)


def without_plots(page: Path) -> Path:
    """A copy whose plots are gone."""
    copy = page.with_stem(f"{page.stem}_without_plots")
    text = re.sub(r'(<figure class="plot">.*?)<svg.*?</svg>', r"\1", page.read_text("utf-8"), flags=re.DOTALL)
    copy.write_text(text, "utf-8")
    return copy


def opened(browser: Any, page: Path) -> tuple[float, float]:
    """Seconds until the items are there, and until the page is painted."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    started = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector("#count:not(:empty)")
    there = time.perf_counter() - started
    tab.evaluate(PAINTED)
    painted = time.perf_counter() - started
    tab.close()
    return there, painted


def said(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f} s, median {statistics.median(seconds):.2f} s"


def measure(browser: Any, page: Path, openings: int) -> None:
    bare = without_plots(page)
    opened(browser, page)  # the browser's own start
    pairs = [(opened(browser, page), opened(browser, bare)) for _ in range(openings)]
    print(f"{page.name}, {page.stat().st_size / 1e6:.1f} MB, {openings} openings, load {os.getloadavg()[0]:.1f}")
    for name, place in (("items there", 0), ("painted", 1)):
        whole, less = ([pair[which][place] for pair in pairs] for which in (0, 1))
        costs = [a - b for a, b in zip(whole, less, strict=True)]
        print(f"  {name}: {said(whole)}; without plots {said(less)}; plots cost {said(costs)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--openings", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = write_results(folder, args.items, 2)
        images = write_images(folder / "images", args.items)
        make_page(folder / "none.html", results, "--images", "none")
        make_page(folder / "thumbnails.html", results, "--img_path", str(images))
        browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for name in ("none.html", "thumbnails.html"):
            measure(browser, folder / name, args.openings)
        browser.close()


if __name__ == "__main__":
    main()
