"""Small sources of every kind, and sets built of them."""

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformers_agci.data.build import build
from transformers_agci.data.built_set import BuildOptions
from transformers_agci.data.grid import Grid
from transformers_agci.data.sources import Source

pytest.importorskip("datasets")


SMALL = Grid(canvas=30, box=8, margin=2, gutter=1)


def picture(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A coarse random pattern: unlike every other number's."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def good_pairs(count: int = 14) -> list[tuple[str, str, bytes]]:
    shapes = [(96, 72), (72, 96), (120, 120), (300, 70)]
    return [(f"{n:09d}", f"image number {n}", jpeg(picture(n, shapes[n % 4]))) for n in range(count)]


def as_folder(pairs: list[tuple[str, str, bytes]], folder: Path, captions: str = "metadata.csv") -> Path:
    folder.mkdir(parents=True)
    for key, _, data in pairs:
        (folder / f"{key}.jpg").write_bytes(data)
    rows = [{"file_name": f"{key}.jpg", "caption": caption} for key, caption, _ in pairs]
    with (folder / captions).open("w", newline="", encoding="utf-8") as file:
        if captions.endswith(".csv"):
            writer = csv.DictWriter(file, ["file_name", "caption"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def as_img2dataset_tars(pairs: list[tuple[str, str, bytes]], folder: Path) -> Path:
    """Two shards as img2dataset writes them: key.jpg, key.txt, key.json."""
    folder.mkdir(parents=True)
    for shard, part in enumerate((pairs[:8], pairs[8:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for key, caption, data in part:
                meta = json.dumps({"caption": caption, "key": key, "status": "success"}).encode()
                for suffix, content in (("jpg", data), ("json", meta), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def as_table(pairs: list[tuple[str, str, bytes]], folder: Path, kind: str = "parquet") -> Path:
    import datasets

    folder.mkdir(parents=True)
    table = datasets.Dataset.from_dict(
        {
            "key": [key for key, _, _ in pairs],
            "image": [{"bytes": data, "path": f"{key}.jpg"} for key, _, data in pairs],
            "caption": [caption for _, caption, _ in pairs],
        },
        features=datasets.Features(
            {"key": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
        ),
    )
    if kind == "parquet":
        table.to_parquet(folder / "00000.parquet")
    else:
        table.save_to_disk(folder)
    return folder


def options(source: Path, folder: Path, **changes: Any) -> BuildOptions:
    return replace(BuildOptions("probe", Source(str(source)), folder, "set", grid=SMALL), **changes)


def content(folder: Path, without: tuple[str] = ("manifest",)) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if not any(w in p.name for w in without)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_folder(good_pairs(), tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(options(source, folder))
    return folder
