"""Result files and images for the report's tests: answers by chance, texts that attack the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_agci.data.grid import POSITIONS

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    '"><svg onload=document.title=1>',
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "\u202eright to left\u202c \u0007 \ud800 \x00 \u2028 ]]>",
    "x" * 5000,
)


def write_results(
    folder: Path, items: int, *, hostile: bool = False, images: bool = False, margin: bool = True
) -> list[Path]:
    """Two result files of `items` items, Yes and No rows, the second with other answers; returns their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    base = rng.normal(1.2, 1.5, (items, 2, 9))
    paths = []
    for number, shift in enumerate((0.0, 0.4)):
        margins = base + shift + rng.normal(0, 0.8, base.shape)
        path = folder / f"answers.lam{number / 2:g}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for item in range(items):
                for side, answer in enumerate(("Yes", "No")):
                    for cell, position in enumerate(POSITIONS):
                        file.write(
                            json.dumps(_row(item, side, cell, position, answer, margins, hostile, margin)) + "\n"
                        )
        settings = {"lambda": number / 2, "method": "agci"}
        notes = {"img_path": str(folder / "images"), "model": HOSTILE[0] if hostile else "a model"}
        manifest = {"settings": settings, "notes": notes, "rows": 18 * items, "blocks": [[18, items]], "runs": []}
        path.with_name(path.stem + ".manifest.json").write_text(json.dumps(manifest))
        paths.append(path)
    if images:
        write_images(folder / "images", items, hostile)
    return paths


def _row(
    item: int, side: int, cell: int, position: str, answer: str, margins: np.ndarray, hostile: bool, margin: bool
) -> dict[str, Any]:
    value = float(margins[item, side, cell]) * (1 if answer == "Yes" else -1)
    row = {
        "image": image_name(item, cell, hostile),
        "caption": HOSTILE[item % len(HOSTILE)] if hostile else f"{answer} {item}",
        "position": position,
        "answer": answer,
        "prediction": "Yes" if value > 0 else "No",
    }
    if hostile and cell == 8:
        row["prediction"] = HOSTILE[item % len(HOSTILE)]
    return row | ({"margin": round(value, 4)} if margin else {})


def image_name(item: int, cell: int, hostile: bool) -> str:
    """ "<key>_<cell>.jpg"; a hostile key holds markup that a file can be called by."""
    return f"<img src=x onerror=document.title=1>&{item:05d}_{cell}.jpg" if hostile else f"{item:05d}_{cell}.jpg"


def write_images(folder: Path, items: int, hostile: bool = False) -> None:
    """A small image per item and cell."""
    folder.mkdir(exist_ok=True)
    for item in range(items):
        for cell in range(9):
            shade = (40 * item % 256, 28 * cell, 120)
            Image.new("RGB", (90, 90), shade).save(folder / image_name(item, cell, hostile))
