"""How the cost grows with rows, image tokens, questions per image, lambdas and processes; one figure.

    python perf/scaling.py                      a small shape, any machine
    python perf/scaling.py --random_7b          a GPU: Qwen2.5-VL-7B's shape, bfloat16

Each point is one run of the engine. The line is one model, fitted to all points at once:

    time = start + images x (a x patches + b x patches^2)
                 + images x lambdas x (c x tokens + d x tokens^2)
                 + images x lambdas x (questions - 1) x e

with the patches and prompt tokens of an image; all constants are at least 0. Several processes share the blocks of a
run, and the slowest has one block more than the others at most: time(n) = start + blocks of the slowest x time of a
block. One and two processes are measured (on the CPU), up to 64 machines are calculated for 90,000 rows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from engine import engine
from flops import counter, figures
from machine import announce, clock_name, say, timed
from models import SEVEN_B, SMALL, Shape, quick_layers, random_weights
from rows import probe_questions
from scaling_figure import draw
from scipy.optimize import nnls

from transformers_agci.inference.batches import Column
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import prepare

ROWS, SIDE = 18, 448  # of a point where they do not vary
SWEEPS: dict[str, tuple[Any, ...]] = {
    "rows": (9, 18, 36, 72, 144),
    "side": (224, 448, 840, 1260, 1680),
    "questions": (1, 2, 4, 9, 18),
    "lambdas": (1, 2, 4, 8),
}
NAMES = ("start", "a", "b", "c", "d", "e")
MACHINES = (1, 2, 4, 8, 16, 32, 64)


class Point(NamedTuple):
    """One run: what it was about, and how long it took."""

    sweep: str
    at: int  # the value of what varies
    images: int
    patches: int  # of an image
    tokens: int  # of a prompt
    questions: int  # per image
    lambdas: int
    seconds: float

    @property
    def terms(self) -> list[float]:
        """What the constants of `NAMES` are multiplied with."""
        asked = self.images * self.lambdas
        return [
            1,
            self.images * self.patches,
            self.images * self.patches**2,
            asked * self.tokens,
            asked * self.tokens**2,
            asked * (self.questions - 1),
        ]


def measure(loaded: LoadedModel, folder: Path, sweep: str, at: int, rounds: int) -> Point:
    """The fastest of several runs."""
    given = {"rows": ROWS, "side": SIDE, "questions": 1, "lambdas": 1} | {sweep: at}
    asked = probe_questions(folder, given["rows"], given["side"], given["side"], given["questions"])
    lambdas = [0.1 * number for number in range(given["lambdas"])]
    (batch,) = prepare(Column(((0,),)), asked, loaded.processor).batches
    patches, tokens = len(batch.inputs["pixel_values"]), batch.inputs["input_ids"].shape[1]
    times = []
    for _ in range(rounds):
        times.append(timed(loaded.device, lambda: engine(loaded, asked, lambdas, workers=0))[1])
    return Point(sweep, at, given["rows"], patches, tokens, given["questions"], given["lambdas"], min(times))


def fit(points: list[Point]) -> tuple[np.ndarray, float]:
    """The constants, by least squares of the relative error, and the mean absolute relative error."""
    terms = np.array([point.terms for point in points])
    took = np.array([point.seconds for point in points])
    scale = terms.max(axis=0)
    constants = nnls(terms / scale / took[:, None], np.ones(len(points)))[0] / scale
    return constants, float(np.abs(terms @ constants / took - 1).mean())


PROCESS = """
import sys, tempfile; sys.path.insert(0, {perf!r})
from pathlib import Path
from machine import announce; from models import SMALL, quick_layers, random_weights
from rows import probe_questions; from engine import engine
from transformers_agci.storage.result_names import Shard
import json, time
announce()
loaded = random_weights(SMALL)
asked = probe_questions(Path({folder!r}), {rows}, {side}, {side})
with quick_layers(loaded.model):
    engine(loaded, asked[:9], [0.0])
    begin, core = time.perf_counter(), time.process_time()
    engine(loaded, asked, [0.0], batch_size=3, block_rows=9, shard=Shard({index}, {count}))
print(json.dumps([time.perf_counter() - begin, time.process_time() - core]))
"""


def processes(folder: Path, rows: int) -> dict[int, tuple[float, float]]:
    """Wall and core seconds of the slowest of 1 and of 2 processes that share the blocks (the small shape)."""
    took = {}
    probe_questions(folder, rows, SIDE, SIDE)  # draws the images
    for count in (1, 2):
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    PROCESS.format(
                        perf=str(Path(__file__).parent),
                        folder=str(folder),
                        rows=rows,
                        side=SIDE,
                        index=index,
                        count=count,
                    ),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]
        ended = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
        took[count] = (max(wall for wall, _ in ended), max(core for _, core in ended))
    return took


def shared(start: float, per_row: float, machines: int, rows: int = 90_000, block: int = 36) -> float:
    """Seconds of the slowest machine, by calculation."""
    blocks = -(-rows // block)
    return start + -(-blocks // machines) * block * per_row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random_7b", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two points of each kind, to try the command")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="where to draw it, for instance docs/scaling.png")
    return parser.parse_args()


def all_points(loaded: LoadedModel, folder: Path, rounds: int, quick: bool) -> list[Point]:
    """Every value of every sweep, a row of the table each."""
    points = []
    measure(loaded, folder, "rows", 9, 1)  # warm up
    for sweep, values in SWEEPS.items():
        for at in values[: 2 if quick else None]:
            point = measure(loaded, folder, sweep, at, rounds)
            points.append(point)
            say(f"| {sweep} | {at} | {point.patches} | {point.tokens} | {point.seconds:.3f} |")
    return points


def whole_run(loaded: LoadedModel, folder: Path) -> str:
    """One run's rows/s, TFLOP/s and memory."""
    asked = probe_questions(folder, ROWS, SIDE, SIDE)
    _, spent = timed(loaded.device, lambda: engine(loaded, asked, [0.0], workers=0))
    with counter() as counted:  # which slows a run down: not the one that is timed
        engine(loaded, asked, [0.0], workers=0)
    return figures(loaded, ROWS, spent, counted.get_total_flops())


def by_calculation(points: Sequence[Point], constants: np.ndarray) -> dict[int, float]:
    """Hours of so many machines for 90,000 rows; prints them."""
    base = max((point for point in points if point.sweep == "side" and point.at <= 840), key=lambda point: point.at)
    per_row = (np.array(base.terms) @ constants - constants[0]) / base.images
    hours = {machines: shared(constants[0], per_row, machines) / 3600 for machines in MACHINES}
    say(
        f"\n| machines | hours for 90,000 rows of {base.at}x{base.at} pixels, by calculation | part of one's |\n"
        "|---|---|---|"
    )
    for machines, took in hours.items():
        say(f"| {machines} | {took:.3f} | {took / hours[1]:.4f} |")
    return hours


def main() -> None:
    args = arguments()
    announce()
    shape: Shape = SEVEN_B if args.random_7b else SMALL
    loaded = random_weights(shape)
    unit = clock_name(loaded.device).replace("second", "seconds")
    say(
        f"{shape.name}; {ROWS} images of {SIDE}x{SIDE} pixels, one question, one lambda where it is not varied; "
        f"times in {unit}\n\n"
        "| varied | value | patches | prompt tokens | seconds |\n|---|---|---|---|---|"
    )
    took: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name, quick_layers(loaded.model):
        folder = Path(name)
        points = all_points(loaded, folder, args.rounds, args.quick)
        say(f"\n{whole_run(loaded, folder)}")
        constants, error = fit(points)
        told = ", ".join(f"{name} = {value:.3g} s" for name, value in zip(NAMES, constants, strict=True))
        say(f"\nthe model's constants: {told}; mean error {100 * error:.1f} %")
        if loaded.device.type == "cpu":
            took = processes(folder, 18 if args.quick else 72)
            say("\n| processes | wall seconds | core seconds of the slowest |\n|---|---|---|")
            for count, (wall, core) in took.items():
                say(f"| {count} | {wall:.2f} | {core:.2f} |")
    hours = by_calculation(points, constants)
    if args.figure:
        draw(
            args.figure,
            points,
            constants,
            unit=unit,
            shares={count: core / took[1][1] for count, (_, core) in took.items()},
            calculated={machines: each / hours[1] for machines, each in hours.items()},
        )


if __name__ == "__main__":
    main()
