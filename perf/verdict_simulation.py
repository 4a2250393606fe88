"""What is said about evenness on simulated results of known truth: the first version's verdict beside today's.

    python perf/verdict_simulation.py [--replicates 200] [--items 30 100 300]

The first version compared the standard deviations of accuracies over the cells, with a percentile bootstrap over items.
Printed as Markdown: how often each says "more even" or "less even" (false where the truth is no change), and how often
the interval of today's measure holds the truth.
"""

import argparse

import numpy as np

from transformers_agci import statistics as st
from transformers_agci.experiments.position.pair_evenness import compare_evenness
from transformers_agci.experiments.position.results import Tables
from transformers_agci.report.table import markdown_table

ROWS = np.repeat([1.0, 0.0, -1.0], 3) * np.sqrt(1.5)  # sd 1 over the cells
RESAMPLES = 200
SCENARIOS = {
    "no bias, threshold + 0.6": {"shift": 0.6},
    "equal bias, threshold + 0.6": {"shift": 0.6, "bias": (0.3, 0.3)},
    "equal bias, threshold - 1": {"shift": -1.0, "bias": (0.3, 0.3)},
    "equal bias, threshold + 0.6, margins x 2.5": {"shift": 0.6, "scale": 2.5, "bias": (0.3, 0.3)},
    "equal bias, threshold + 0.6, noise x 1.5": {"shift": 0.6, "louder": 1.5, "bias": (0.3, 0.3)},
    "equal bias, threshold + 0.6, heavy tails": {"shift": 0.6, "tails": True, "bias": (0.3, 0.3)},
    "bias .2 halved": {"bias": (0.2, 0.1)},
    "bias .2 removed": {"bias": (0.2, 0.0)},
    "bias .2 halved, threshold + 0.6": {"bias": (0.2, 0.1), "shift": 0.6},
    "bias .1 doubled": {"bias": (0.1, 0.2)},
}


def draw(
    rng: np.random.Generator,
    items: int,
    *,
    bias: tuple[float, float] = (0.0, 0.0),
    shift: float = 0.0,
    scale: float = 1.0,
    louder: float = 1.0,
    tails: bool = False,
    alike: float = 0.9,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(Yes, No), each the margins of two results, [items, 9]: noise of variance 1, half of it the item's own."""

    def noise() -> np.ndarray:
        sizes = (items, 1), (items, 9)
        drawn = [rng.standard_t(3, size=s) / np.sqrt(3) if tails else rng.normal(size=s) for s in sizes]
        return np.sqrt(0.5) * (drawn[0] + drawn[1])

    answers = []
    for mean, lean in ((1.28, 1), (-1.28, 0)):
        before = noise()
        after = alike * before + np.sqrt(1 - alike**2) * noise()
        first = mean + lean * bias[0] * ROWS + before
        answers.append((first, scale * (mean + shift + lean * bias[1] * ROWS + louder * after)))
    return answers


def of_first_version(yes: tuple[np.ndarray, np.ndarray], seed: int) -> str:
    """Deviation of the accuracies, percentile bootstrap."""
    correct = [(margins > 0).astype(float) for margins in yes]
    samples = st.bootstrap(correct, RESAMPLES, seed)
    moved = st.deviation(samples[1].cells) - st.deviation(samples[0].cells)
    change = st.percentile_interval(moved, 0.0, len(correct[0]))
    return "less even" if change.low > 0 else "more even" if change.high < 0 else "neither"


def tables(margins: np.ndarray, right: bool) -> Tables:
    said = (margins > 0).astype(float)
    return Tables(said if right else 1 - said, said, 0 * said, margins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--items", type=int, nargs="+", default=[30, 100, 300])
    args = parser.parse_args()
    rows = []
    for name, truth in SCENARIOS.items():
        for items in args.items:
            rng = np.random.default_rng(items)
            before, after, bare, covered = [], [], [], 0
            for number in range(args.replicates):
                yes, no = draw(rng, items, **truth)
                before.append(of_first_version(yes, number))
                sides = [tuple(tables(m, right) for m in side) for side, right in ((yes, True), (no, False))]
                found = compare_evenness(sides[0], sides[1])
                after.append(found.verdict)
                without = [
                    tuple(Tables(t.correct, t.said_yes, t.unreadable, np.full_like(t.margin, np.nan)) for t in side)
                    for side in sides
                ]
                bare.append(compare_evenness(without[0], without[1]).verdict)
                bias = truth.get("bias", (0.0, 0.0))
                expected = (bias[1] / truth.get("louder", 1.0)) ** 2 - bias[0] ** 2
                covered += found.margin.low <= expected <= found.margin.high
            shares = [_said(verdicts) for verdicts in (before, after, bare)]
            rows.append([name, str(items), *shares, f"{100 * covered / args.replicates:.0f}"])
            print(*rows[-1], sep=" | ", flush=True)
    header = ["truth", "items", "first version", "margins", "answers only", "interval holds the truth, %"]
    print("\n" + markdown_table(header, rows))


def _said(verdicts: list[str]) -> str:
    more, less, unknown = (100 * verdicts.count(w) / len(verdicts) for w in ("more even", "less even", "cannot tell"))
    return f"{more:.0f} / {less:.0f}" + (f" ({unknown:.0f} cannot tell)" if unknown else "")


if __name__ == "__main__":
    main()
