"""The small samples that the repository ships: probe, similarity, instruction; made by our own builder."""

import contextlib
import csv
import io
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from transformers_agci.data.build import build
from transformers_agci.data.built_set import BuildOptions
from transformers_agci.data.composites import compose, encode_jpeg
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.data.instruct import register, write_sample
from transformers_agci.data.rows import Row
from transformers_agci.data.sources import Source
from transformers_agci.storage.atomic import write_atomic

NAME = "sample_noto_840_840"
PROBE_ITEMS = 4
SIMILARITY_ITEMS = 4
CONVERSATIONS = 16
SEED = 0
INSTRUCT_NAME = "sample_noto"
TEN_THOUSAND = "llava_v1_5_instruct_sample_10k"  # registered in dataset_info.json; agci data sample-instruct writes it

Captioned = tuple[str, Image.Image]


def build_samples(root: Path, images: Sequence[Captioned]) -> dict[Path, int]:
    """Write the samples into probe_datasets/, similarity_data/ and data/ below `root`, in place of what is there.

    `images` are (caption, image); equal images give equal bytes. Returns the size of each folder in bytes.
    """
    shuffled = random.Random(SEED).sample(list(images), len(images))
    root = root.resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        # A relative name, because the manifest repeats it.
        source = Source(str(_write_source(Path("noto_atlas"), shuffled)))
        probe = BuildOptions(
            "probe", source, root / "probe_datasets", NAME, "images", PROBE_ITEMS, pool=len(shuffled), seed=SEED
        )
        build(probe, overwrite=True)
        similarity = BuildOptions(
            "similarity", source, root / "similarity_data", NAME, "images", SIMILARITY_ITEMS, seed=SEED
        )
        build(similarity, overwrite=True)
    _build_conversations(root / "data", shuffled, random.Random(SEED))
    return {
        folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (root / "probe_datasets", root / "similarity_data", root / "data")
    }


def _write_source(folder: Path, images: Sequence[Captioned]) -> Path:
    folder.mkdir()
    rows = io.StringIO(newline="")
    writer = csv.writer(rows)
    writer.writerow(["file_name", "caption"])
    for number, (caption, image) in enumerate(images):
        name = f"noto_{number:03d}.png"
        image.save(folder / name)
        writer.writerow([name, caption])
    write_atomic(folder / "metadata.csv", rows.getvalue().encode())
    return folder


def _build_conversations(folder: Path, images: Sequence[Captioned], rng: random.Random) -> None:
    """Nine images in a small grid, and two questions about what stands where."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    grid = Grid(canvas=252, box=84, margin=0, gutter=0)
    rows: list[Row] = []
    for number in range(CONVERSATIONS):
        shown = rng.sample(images, len(POSITIONS))
        name = f"images/noto_{number:03d}.jpg"
        write_atomic(folder / name, [encode_jpeg(compose([image for _, image in shown], grid))])
        turns = []
        for asked, k in enumerate(rng.sample(range(len(POSITIONS)), 2)):
            where = POSITIONS[k].replace("_", " ")
            mark = "" if asked else "<image>\n"
            turns.append({"from": "human", "value": f"{mark}Which image stands in the cell {where}?"})
            turns.append({"from": "gpt", "value": shown[k][0].capitalize() + "."})
        rows.append({"id": f"noto_{number:03d}", "image": name, "conversations": turns})
    write_sample(rows, folder, INSTRUCT_NAME)
    register(folder, TEN_THOUSAND)
