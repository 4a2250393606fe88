"""`agci evidence` over ten results of 10,000 items x 9 cells, Yes and No rows, and `agci metrics` over two of them.

    python perf/evidence_speed.py [--items 10000] [--results 10] [--folder F]

Prints seconds and peak memory of each command, run as a process of its own with one thread. The files (80 MB each) are
made in the folder unless they are there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from transformers_agci.data.grid import POSITIONS

MARGIN = 1.3  # logits: accuracies of about 90 %


def write_results(folder: Path, items: int, results: int) -> list[Path]:
    """Results of one model: what they share is most of their margins; the bias shrinks from the first to the last."""
    rng = np.random.default_rng(0)
    shared = {answer: rng.normal(size=(items, 1)) + rng.normal(size=(items, 9)) for answer in ("Yes", "No")}
    lean = np.repeat([1, 0, -1], 3)
    files = []
    for number in range(results):
        file = folder / f"result{number}.{items}.jsonl"
        files.append(file)
        if file.exists():
            continue
        with file.open("w") as out:
            tables = {}
            for answer, mean in (("Yes", MARGIN + 0.3 * (1 - number / results) * lean), ("No", -MARGIN)):
                tables[answer] = mean + 0.7 * shared[answer] + 0.3 * rng.normal(size=(items, 9))
            for item in range(items):
                for answer, table in tables.items():
                    for cell, position in enumerate(POSITIONS):
                        out.write(json.dumps(_row(item, cell, position, answer, float(table[item, cell]))) + "\n")
    return files


def _row(item: int, cell: int, position: str, answer: str, margin: float) -> dict[str, object]:
    return {
        "id": 9 * item + cell,
        "image": f"{item:06d}_{cell}.jpg",
        "caption": f"a photograph of thing {item}",
        "position": position,
        "answer": answer,
        "prediction": "Yes" if margin > 0 else "No",
        "qs": "Determine if there is a sub-image in the given image that matches the text following.",
        "margin": round(margin, 4),
    }


def measure(words: list[str]) -> str:
    """Seconds of wall and processor, and the peak memory, of one command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "transformers_agci.cli", *words],
        env=environment,
        check=True,
        text=True,
        capture_output=True,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = f"largest process so far {after.ru_maxrss / 2**20:.2f} GiB"
    return f"{wall:.1f} s, {cpu:.1f} s of one core, {peak}, {len(done.stdout):,} characters printed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--results", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = [str(file) for file in write_results(folder, args.items, args.results)]
        print(f"metrics of 2 results: {measure(['metrics', '--results_file', *files[:2]])}", flush=True)
        print(f"evidence of {len(files)} results: {measure(['evidence', *files, '--margin', '1'])}", flush=True)


if __name__ == "__main__":
    main()
