"""Memory over a long run: a data file of 90,000 rows is open, 2,000 of them are run: `python perf/memory.py`.

The embedded model answers its own probe set, whose 10 items stand for all 10,000: every item of the file has ids and
image names of its own, the names being links to these items' images. A share of 1/45 of the blocks is run, as in a
job array, so that all 90,000 rows are read, planned and held. The process's memory is read after every block; a list
that grew with the rows, an image or a cache that was kept would show.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import engine
from machine import announce, say
from models import quick_layers

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.position.data import embedded_data, read_data
from transformers_agci.experiments.position.questions import questions
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.storage import result_file as results
from transformers_agci.storage.result_names import Shard

MB = 1e6
SETTLED = 200  # rows: by then every buffer has had its size


def write_rows(folder: Path, rows: int) -> tuple[Path, Path]:
    """A probe file of so many rows, and the folder of its images."""
    data = embedded_data(folder / "set", 10, seed=0)
    known = [row.fields for of_item in data.items.values() for row in of_item if row.answer == "Yes"]
    path = folder / "laion_bias_test_easy_10k.json"
    with path.open("w") as file:
        for number in range(rows):
            like = known[number % len(known)]
            name = f"{number // 9:05d}_{number % 9}.jpg"
            os.link(data.img_path / like["image"], data.img_path / name)
            file.write(json.dumps({**like, "id": number, "image": name}) + "\n")
    return path, data.img_path


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


@contextmanager
def watched() -> Iterator[list[tuple[int, float]]]:
    """(rows so far, MB) after every block that is written."""
    seen: list[tuple[int, float]] = []
    stock = results.ResultFile.write

    def write(self: Any, index: int, rows: Any, failed: Any) -> None:
        stock(self, index, rows, failed)
        seen.append(((seen[-1][0] if seen else 0) + len(rows), resident()))

    results.ResultFile.write = write  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        results.ResultFile.write = stock  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=90_000, help="in the file")
    parser.add_argument("--run", type=int, default=2_000, help="that are answered")
    args = parser.parse_args()
    announce()
    loaded = load(LoadOptions(str(embedded_model_path()), vision="stock"))
    with tempfile.TemporaryDirectory() as name, quick_layers(loaded.model), watched() as seen:
        say(f"model loaded: {resident():.0f} MB")
        data = read_data(*write_rows(Path(name), args.rows))
        asked = questions(data.items, data.img_path)
        say(f"{len(asked)} rows open: {resident():.0f} MB")
        engine(loaded, asked, [0.5], shard=Shard(0, max(1, args.rows // args.run)))
    settled = [megabytes for rows, megabytes in seen if rows >= SETTLED]
    marks = [seen[len(seen) * part // 8] for part in range(8)] + [seen[-1]]
    say("\n| rows answered | MB |\n|---|---|")
    for rows, megabytes in dict(marks).items():
        say(f"| {rows} | {megabytes:.0f} |")
    growth = [megabytes - settled[0] for megabytes in settled]
    say(f"\ngrowth after row {SETTLED}: {max(growth):+.1f} MB at most, {growth[-1]:+.1f} MB at the end")


if __name__ == "__main__":
    main()
