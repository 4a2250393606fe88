"""The engine and the plain loop on the same questions: rates in turn, then where the time goes, then the arithmetic."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from engine import engine
from flops import TOLERANCE, Formula, counter, figures
from machine import clock_name, say, timed
from models import quick_vision
from plain_loop import plain_loop
from split import Split, heading

from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.questions import Question


@dataclass
class Comparison:
    """The same questions at the same lambdas with the same weights, dtype and threads.

    plain_asked  the questions of the plain loop: as many of them as there is time for
    at_most      seconds of the clock that a round of the plain loop may take
    """

    loaded: LoadedModel
    asked: Sequence[Question]
    lambdas: Sequence[float]
    rounds: int
    plain_asked: Sequence[Question]
    at_most: float = 30.0
    batch_size: int | None = None  # the engine's own
    rates: dict[str, list[float]] = field(default_factory=dict)  # rows per second, round by round

    def run(self) -> None:
        """Print everything."""
        unit = clock_name(self.loaded.device)
        say(
            f"{len(self.asked)} questions x {len(self.lambdas)} lambdas, {self.loaded.model.dtype}, rows per {unit} "
            "(and per second of the clock)\n"
        )
        self._warm_up()
        for number in range(1, self.rounds + 1):  # in turn, so that a machine that changes changes for all
            for name, work in self._contenders():
                counts = self._measure(number, name, work)
        say(f"\n| | rows per {unit}, median | to the plain loop |\n|---|---|---|")
        for name, rates in self.rates.items():
            say(f"| {name} | {median(rates):.1f} | {median(rates) / median(self.rates['plain loop']):.2f}x |")
        say(
            f"\n{counts.rows} answers: {counts.vision_images} images through the vision side in "
            f"{counts.vision_calls} calls; {counts.prefill_tokens} prompt tokens through the decoder, "
            f"{counts.replayed_tokens} taken over"
        )
        self._split()
        self._arithmetic()

    def _contenders(self) -> Iterator[tuple[str, Callable[[], tuple[int, Any]]]]:
        """What is measured in a round, by name; the last ones run under the quick vision tower."""
        yield "plain loop", self._plain
        stock = replace(self.loaded, quick=frozenset())
        yield "ours, all stock", lambda: self._ours(stock, workers=0)
        yield "ours, stock layers", lambda: self._ours(workers=0)
        with quick_vision(self.loaded.model) as how:
            yield f"ours ({how})", lambda: self._ours(workers=0)
            if self.loaded.device.type == "cuda":
                yield "ours, 4 processes prepare images", lambda: self._ours(workers=4)

    def _plain(self, split: Split | None = None) -> tuple[int, None]:
        return plain_loop(self.loaded, self.plain_asked, self.lambdas, split, self.at_most), None

    def _ours(self, loaded: LoadedModel | None = None, **options: Any) -> tuple[int, Any]:
        options = {"batch_size": self.batch_size} | options
        counts = engine(loaded or self.loaded, self.asked, self.lambdas, **options)
        return counts.rows, counts

    def _warm_up(self) -> None:
        plain_loop(self.loaded, self.plain_asked[:3], self.lambdas[:1])
        engine(self.loaded, self.asked[: max(1, len(self.asked) // 4)], self.lambdas[:1], workers=0)

    def _measure(self, number: int, name: str, work: Callable[[], tuple[int, Any]]) -> Any:
        wall = time.perf_counter()
        (answers, counts), took = timed(self.loaded.device, work)
        wall = time.perf_counter() - wall
        self.rates.setdefault(name, []).append(answers / took)
        say(f"round {number}: {answers / took:7.1f} ({answers / wall:.1f})  {name}")
        return counts

    def _split(self) -> None:
        say(heading(self.loaded.device))
        with Split(self.loaded) as split:
            answers, _ = self._plain(split)
        say(split.row(answers, "plain loop"))
        with quick_vision(self.loaded.model), Split(self.loaded) as split:
            answers, _ = self._ours(workers=0)
        say(split.row(answers, "ours"))

    def _arithmetic(self) -> None:
        """Operations per row, counted and by formula, and how much of the device's own rate that is."""
        device = self.loaded.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with quick_vision(self.loaded.model):
            with Formula(self.loaded.model) as formula, counter() as counted:
                answers, _ = self._ours(workers=0)
            total = counted.get_total_flops()
            apart = total / formula.flops - 1
            best = max(median(rates) for name, rates in self.rates.items() if name.startswith("ours"))
            say(
                f"\nours: {total / answers / 1e12:.4g} TFLOP per row by torch's counter, {100 * apart:+.2f} % from the "
                f"formula\n{figures(self.loaded, answers, answers / best, total)}"
            )
        if abs(apart) > TOLERANCE:
            raise SystemExit(f"counter and formula differ by {100 * apart:.2f} %, more than {100 * TOLERANCE:.0f} %")
