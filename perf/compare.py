"""The engine and the plain loop on the same questions: rates in turn, then where the time goes, then the arithmetic."""

import argparse
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, NamedTuple

import torch
from engine import engine
from flops import TOLERANCE, Formula, counter, figures
from machine import clock_name, say, timed
from models import quick_layers
from plain_loop import plain_loop
from split import Split, heading

from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.questions import Question
from transformers_agci.inference.quick import ALL


class Contender(NamedTuple):
    """Our engine in one form.

    kernels  names of what is put on the layers; None: the stock layers
    tower    whether the vision tower attends and embeds quickly
    quick    the engine's own ways to do with less
    """

    name: str
    kernels: Collection[str] = ()
    tower: bool = False
    quick: Collection[str] = ALL
    workers: int = 0
    batch_size: int | None = None
    slow: bool = False


@dataclass
class Comparison:
    """The same questions at the same lambdas with the same weights, dtype and threads.

    plain_asked  the questions of the plain loop: as many of them as there is time for
    at_most      seconds of the clock that a round of the plain loop may take
    batch_sizes  further ones, of ours alone
    leave_out    ways to do with less (quick.py) without which ours is measured, one at a time
    slow_rows    questions of those with the stock tower and of what is left out; default: all
    ours_only    leave out those that are ours in part
    """

    loaded: LoadedModel
    asked: Sequence[Question]
    lambdas: Sequence[float]
    rounds: int
    plain_asked: Sequence[Question]
    at_most: float = 30.0
    batch_size: int | None = None  # the engine's own
    batch_sizes: Sequence[int] = ()
    leave_out: Sequence[str] = ()
    slow_rows: int | None = None
    ours_only: bool = False
    rates: dict[str, list[float]] = field(default_factory=dict)  # rows per second, round by round

    def run(self) -> None:
        """Print everything, what matters most first: a run that is cut off has shown that."""
        unit = clock_name(self.loaded.device)
        say(
            f"{len(self.asked)} questions x {len(self.lambdas)} lambdas, {self.loaded.model.dtype}, rows per {unit} "
            "(and per second of the clock)\n"
        )
        contenders = self._contenders()
        for number in range(1, self.rounds + 1):  # in turn, so that a machine that changes changes for all
            self._measure(number, "plain loop", self._plain, lambda: plain_loop(*self._few_plain()))
            for contender in contenders:
                counts = self._measure_ours(number, contender)
        self._table(unit, self.rates)
        say(
            f"\n{counts.rows} answers: {counts.vision_images} images through the vision side in "
            f"{counts.vision_calls} calls; {counts.prefill_tokens} prompt tokens through the decoder, "
            f"{counts.replayed_tokens} taken over"
        )
        apart = self._arithmetic()
        self._split()
        self._further(unit)
        if abs(apart) > TOLERANCE:
            raise SystemExit(f"counter and formula differ by {100 * apart:.2f} %, more than {100 * TOLERANCE:.0f} %")

    def _contenders(self) -> list[Contender]:
        """What is measured in each round; the last one is ours as `agci` runs it."""
        ours = Contender("ours", ALL, tower=True)
        contenders = [
            Contender("ours, all stock", quick=(), slow=True),
            Contender("ours, stock tower, no kernels", slow=True),
            Contender("ours, stock tower", ALL, slow=True),
            Contender("ours, no kernels", tower=True),
            ours,
        ]
        contenders = [ours] if self.ours_only else contenders
        more = [ours._replace(name="ours, 4 processes prepare images", workers=4)]
        return contenders + (more if self.loaded.device.type == "cuda" else [])

    def _further(self, unit: str) -> None:
        """Ours at other batch sizes, and without one way at a time."""
        ours = Contender("ours", ALL, tower=True)
        further = [ours._replace(name=f"ours, {size} per call", batch_size=size) for size in self.batch_sizes]
        if self.leave_out:
            further.append(ours._replace(name="ours, in turn with these", slow=True))
        for way in self.leave_out:
            without = ALL - {way}
            further.append(ours._replace(name=f"ours without {way}", kernels=without, quick=without, slow=True))
        if not further:
            return
        say("")
        names = {contender.name for contender in further}
        for number in range(1, self.rounds + 1):
            for contender in further:
                self._measure_ours(number, contender)
        self._table(unit, {name: rates for name, rates in self.rates.items() if name in names})

    def _table(self, unit: str, of: Mapping[str, Sequence[float]]) -> None:
        plain = median(self.rates["plain loop"])
        say(f"\n| | rows per {unit}, median | to the plain loop |\n|---|---|---|")
        for name, rates in of.items():
            span = f" ({min(rates):.1f} to {max(rates):.1f})" if len(rates) > 1 else ""
            say(f"| {name} | {median(rates):.1f}{span} | {median(rates) / plain:.2f}x |")

    def _plain(self, split: Split | None = None) -> tuple[int, None]:
        return plain_loop(self.loaded, self.plain_asked, self.lambdas, split, self.at_most), None

    def _few_plain(self) -> tuple[LoadedModel, Sequence[Question], Sequence[float]]:
        return self.loaded, self.plain_asked[:3], self.lambdas[:1]

    def _measure_ours(self, number: int, contender: Contender) -> Any:
        """One round of our engine in this form, after a warm-up of its own: it compiles, it plans, it takes memory."""
        loaded = replace(self.loaded, quick=frozenset(contender.quick))
        size = contender.batch_size or self.batch_size
        with quick_layers(loaded.model, contender.kernels, contender.tower) as how:
            if number == 1:
                say(f"{contender.name}: {how}")

            of_it = self.asked[: self.slow_rows] if contender.slow else self.asked

            def work(asked: Sequence[Question] = of_it) -> tuple[int, Any]:
                counts = engine(loaded, asked, self.lambdas, workers=contender.workers, batch_size=size)
                return counts.rows, counts

            return self._measure(number, contender.name, work, lambda: work(of_it[: self._warming(size)]))

    def _warming(self, size: int | None) -> int:
        """Questions of a warm-up: about a quarter of them, a batch of the largest size at least."""
        return max(1, size or 0, len(self.asked) // 4)

    def _measure(
        self, number: int, name: str, work: Callable[[], tuple[int, Any]], warm_up: Callable[[], object]
    ) -> Any:
        if number == 1:
            warm_up()
        wall = time.perf_counter()
        (answers, counts), took = timed(self.loaded.device, work)
        wall = time.perf_counter() - wall
        self.rates.setdefault(name, []).append(answers / took)
        say(f"round {number}: {answers / took:7.1f} ({answers / wall:.1f})  {name}")
        return counts

    def _ours(self, loaded: LoadedModel | None = None) -> int:
        return engine(loaded or self.loaded, self.asked, self.lambdas, workers=0, batch_size=self.batch_size).rows

    def _split(self) -> None:
        say(heading(self.loaded.device))
        with Split(self.loaded) as split:
            answers, _ = self._plain(split)
        say(split.row(answers, "plain loop"))
        alone = replace(self.loaded, quick=ALL - {"pinned"})  # whose thread would work beside what is measured
        with quick_layers(alone.model), Split(alone) as split:
            answers = self._ours(alone)
        say(split.row(answers, "ours"))

    def _arithmetic(self) -> float:
        """Operations per row by formula, and how much of the device's own rate that is; how far off the counter is."""
        device = self.loaded.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with quick_layers(self.loaded.model):
            with Formula(self.loaded.model) as formula, counter() as counted:
                answers = self._ours()
            apart = counted.get_total_flops() / formula.flops - 1
            best = max(median(rates) for name, rates in self.rates.items() if name.startswith("ours"))
            say(
                f"\nours: {formula.flops / answers / 1e12:.4g} TFLOP per row by the formula; torch's counter "
                f"{100 * apart:+.2f} % from the formula\n{figures(self.loaded, answers, answers / best, formula.flops)}"
            )
        return apart


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is measured how often, at which batch sizes, and without which shortcuts."""
    parser.add_argument("--plain_rows", type=int, default=36, help="of the plain loop (default 36)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (default 3)")
    parser.add_argument("--batch_size", type=int, help="images per call; default: the engine's own")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[], help="further ones, of ours alone")
    parser.add_argument("--slow_rows", type=int, help="questions of those with the stock tower, or without a way")
    parser.add_argument("--ours_only", action="store_true", help="without those that are ours in part")
    parser.add_argument("--leave_out", nargs="*", metavar="WAY", help="also ours without each way, or these, alone")


def further(args: argparse.Namespace, ways: Sequence[str]) -> dict[str, Any]:
    """What these arguments say to a `Comparison`."""
    return {
        "batch_size": args.batch_size,
        "batch_sizes": args.batch_sizes,
        "slow_rows": args.slow_rows,
        "ours_only": args.ours_only,
        "leave_out": () if args.leave_out is None else args.leave_out or ways,
    }
