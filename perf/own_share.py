"""AGCI's own share of the time: the same prefill with lambda 0 and with lambda 0.5 in turn, row after row.

    python perf/own_share.py                    the embedded model, any machine
    python perf/own_share.py --random_7b        a GPU: Qwen2.5-VL-7B's shape, 840x840 pixels, bfloat16
    python perf/own_share.py --small            the same with a small shape, on any machine

A row's two calls follow one another, in an order that changes from row to row, on the same inputs with the images'
features at hand. The share is the mean difference as part of the mean time at lambda 0 of the whole forward call, the
vision side included; the interval is Student's over the paired differences.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from flops import counter, figures
from machine import announce, say, timed
from models import chosen_model, model_parser, quick_layers
from rows import probe_questions
from scipy import stats

from transformers_agci import agci
from transformers_agci.inference.batches import Column
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import prepare, to_device
from transformers_agci.inference.questions import Question

LAMBDAS = (0.0, 0.5)


def batches(loaded: LoadedModel, asked: Sequence[Question], rows: int, size: int) -> Iterator[dict[str, Any]]:
    """Inputs on the device for `rows` rows, `size` at a time; the questions come round again when they are used up."""
    made: dict[tuple[int, ...], Any] = {}  # preparing takes a multiple of what is measured
    for start in range(0, rows, size):
        numbers = tuple((start + n) % len(asked) for n in range(size))
        if numbers not in made:
            (made[numbers],) = prepare(Column((numbers,)), asked, loaded.processor).batches
        yield to_device(loaded, made[numbers].inputs)


def measure(loaded: LoadedModel, asked: Sequence[Question], rows: int, size: int) -> list[tuple[float, float]]:
    """Seconds at lambda 0 and at 0.5, per batch."""
    times = []
    with agci(loaded.model, 0.0) as handle, torch.inference_mode():
        for number, inputs in enumerate(batches(loaded, asked, rows + 3 * size, size)):
            took = [0.0, 0.0]
            for i in (0, 1) if number % 2 else (1, 0):
                handle.lam = LAMBDAS[i]
                took[i] = timed(loaded.device, lambda given=inputs: loaded.model(**given, logits_to_keep=1))[1]
            times.append((took[0], took[1]))
    return times[3:]  # the first ones warm up


def report(times: Sequence[tuple[float, float]], size: int) -> None:
    apart = [on - off for off, on in times]
    base, count = statistics.mean(off for off, _ in times), len(times)
    share = statistics.mean(apart) / base
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(apart) / count**0.5 / base
    say(
        f"| {size} | {count} | {1000 * base:.2f} | {1000 * statistics.mean(apart):+.4f} | {100 * share:+.3f} "
        f"({100 * (share - half):+.3f} to {100 * (share + half):+.3f}) |"
    )


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--rows", type=int, default=200, help="default 200")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="default: 1 and the engine's own")
    args = parser.parse_args()
    announce()
    loaded = chosen_model(args)
    side = 840 if args.random_7b or args.small else 252
    sizes = args.batch_sizes or (1, 18 if loaded.device.type == "cuda" else 9)
    lines: list[str] = []
    say("| batch | pairs | ms at lambda 0 | difference, ms | AGCI's share, % (95 % interval) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, quick_layers(loaded.model):
        asked = probe_questions(Path(name), min(args.rows, 54), side, side)
        for size in sizes:
            times = measure(loaded, asked, args.rows, size)
            report(times, size)
            (inputs, *_) = batches(loaded, asked, size, size)
            with counter() as counted, torch.inference_mode():
                loaded.model(**inputs, logits_to_keep=1)
            flops, took = counted.get_total_flops() * len(times), sum(on for _, on in times)
            lines.append(f"batch {size}: {figures(loaded, size * len(times), took, flops)}")
    say("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
