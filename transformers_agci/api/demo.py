"""The demo in Python: the embedded model with a planted bias, with and without AGCI, by several processes."""

from pathlib import Path

from transformers_agci.api.arguments import checked, whole_number
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.results import ProbeRun
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.defaults import DEMO_BIAS, DEMO_ITEMS, PROCESSES
from transformers_agci.experiments.demo import Demo
from transformers_agci.inference.progress import Say


@checked
def demo(
    items: int = DEMO_ITEMS,
    *,
    seed: int = 0,
    processes: int = PROCESSES,
    planted_bias: float = DEMO_BIAS,
    folder: str | Path | None = None,
    progress: bool = True,
) -> ProbeRun:
    """From nothing to a heat map: the embedded model, a bias planted in it, answers with and without AGCI.

    `items` items in nine positions, asked once with the right caption and once with a wrong one, at lambda 0 and 0.5,
    by `processes` one-thread processes; always recomputed. With a `folder` rows, map and numbers stay there. `log`
    has what the command prints, the verdict last.

    >>> from transformers_agci import demo
    >>> run = demo(items=1, processes=1, progress=False)
    >>> len(run), run.to_pandas().shape[0]
    (2, 36)
    """
    place, lines = place_of(folder), list[str]()
    counts = whole_number("items", items), whole_number("seed", seed, 0), whole_number("processes", processes)
    made = run_demo(Demo(place.folder, *counts, EMBEDDED, float(planted_bias), progress), quiet(lines))
    return ProbeRun(0, tuple(lines), made.files, _kept=place.kept)


def run_demo(demo: Demo, say: Say) -> ProbeRun:
    """A demo as the command runs it; `say` takes what a user reads while it goes on."""
    demo.run(say)
    return ProbeRun(0, (), tuple(demo.outputs))
