"""How fast probe sets are built, and in how much memory: `python perf/composites.py [--items 100 1000]`.

Draws photograph-like JPEGs of 512 px, builds a probe set of each size in a process of its own with one worker, and
prints composites per second and the process's peak memory. Decoding, screening, painting, writing and hashing are
all inside; Python's start and the import of the datasets library (with torch) are not. Seconds of the clock count
everything else that runs on the machine; seconds of the core do not.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from photographs import photograph

SIDE = 512  # pixels, longer side of a source

CHILD = """
import json, resource, sys, time
from pathlib import Path
from transformers_agci.data.build import build
from transformers_agci.data.built_set import BuildOptions
from transformers_agci.data.sources import Source
source, folder, items = sys.argv[1:]
build(BuildOptions("probe", Source(source), Path(folder), "first", items=10))  # loads datasets and what it loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clock, core = time.perf_counter(), time.process_time()
summary = build(BuildOptions("probe", Source(source), Path(folder), "set", items=int(items)))
print(json.dumps({
    "composites": summary.composites,
    "clock": time.perf_counter() - clock,
    "core": time.process_time() - core,
    "before": before / 1024,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def draw_sources(folder: Path, count: int) -> int:
    """Write `count` JPEGs with metadata.csv; returns their mean size in bytes."""
    sizes = []
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number in range(count):
            path = folder / f"{number:06d}.jpg"
            height = int(SIDE * np.random.default_rng(number).uniform(0.6, 1))
            photograph(number, SIDE, height).save(path, "JPEG", quality=90)
            sizes.append(path.stat().st_size)
            writer.writerow([path.name, f"image {number}"])
    return round(sum(sizes) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100, 1000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        size = draw_sources(source, max(args.items))
        print(f"sources: {max(args.items)} JPEGs of {SIDE} px, {size / 1000:.0f} kB each; one worker\n")
        print("| items | composites | per second of the core | per second of the clock | memory before | peak |")
        print("|---|---|---|---|---|---|")
        for items in args.items:
            command = [sys.executable, "-c", CHILD, str(source), str(Path(name) / f"built_{items}"), str(items)]
            run = json.loads(subprocess.check_output(command).splitlines()[-1])
            print(
                f"| {items} | {run['composites']} | {run['composites'] / run['core']:.0f} | "
                f"{run['composites'] / run['clock']:.0f} | {run['before']:.0f} MB | {run['peak']:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
