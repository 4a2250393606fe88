"""The position probe in Python: what comes out are the result files that `api.results` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import (
    checked,
    control_list,
    maybe_lambdas,
    maybe_whole,
    method_list,
    needed_data,
    with_options,
)
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.models import Model, answering
from transformers_agci.api.results import ProbeRun
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.defaults import FIRST_LOOK_ITEMS
from transformers_agci.experiments.position.ask import ProbeOptions, ask_probe
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions


@checked
def probe(
    model: Model = EMBEDDED,
    data: ProbeData | None = None,
    lambdas: Sequence[float] | float | None = None,
    *,
    method: str | Sequence[str] = "agci",
    method_options: Mapping[str, Any] | None = None,
    scope: str = "image",
    controls: Sequence[str] = (),
    folder: str | Path | None = None,
    batch_size: int | None = None,
    block_rows: int | None = None,
    workers: int | None = None,
    planted_bias: float = 0.0,
    progress: bool = True,
    overwrite: bool = False,
    strict: bool = False,
) -> ProbeRun:
    """Ask a model about every cell of every item, at every lambda and with every method.

    `data` is that of `probe_data` or `composites`; None: 20 items of the embedded atlas. Without `lambdas` it is the
    model's own, else 0. `controls` are text_only and blank_image. With a `folder` the answers stay there
    (answers.jsonl, or answers.lam0.jsonl, ...), and the same call goes on after an interruption or returns what
    is there. `method_options` are the strength and what else a rival has, or the seed of a control; batches and blocks
    are as in AnswerOptions.
    InputError for an argument that cannot be meant.

    >>> from transformers_agci import probe, probe_data
    >>> run = probe(data=probe_data(items=2), lambdas=[0, 0.5], progress=False)
    >>> len(run), run.to_pandas().shape[0]
    (2, 72)
    """
    place, wanted, asked = place_of(folder), maybe_lambdas(lambdas), control_list(controls)
    methods = [with_options(name, method_options) for name in method_list(method)]
    given = AnswerOptions(
        maybe_whole("batch_size", batch_size),
        maybe_whole("block_rows", block_rows),
        maybe_whole("workers", workers, least=0),
        scope=scope,
        run=RunOptions(None, overwrite, strict, progress),
    )
    runs = []
    with answering(model) as engine:
        for name, own in methods:
            options = ProbeOptions(
                LoadOptions(EMBEDDED),
                answer_file=place.folder / "answers.jsonl",
                lambdas=wanted,
                lambda_source="the caller",
                controls=asked,
                planted_bias=planted_bias,
                answers=replace(given, method=name, method_options=own),
                engine=engine,
                data=needed_data(data),
                items=None if data else FIRST_LOOK_ITEMS,
            )
            lines: list[str] = []
            runs.append(replace(run_probe(options, quiet(lines)), log=tuple(lines), _kept=place.kept))
    return sum(runs[1:], runs[0])


def run_probe(options: ProbeOptions, say: Say) -> ProbeRun:
    """A probe as the command runs it; `say` takes what a user reads while it goes on."""
    probed = ask_probe(options, say)
    controls = {name: paths for name, paths in probed.files.items() if name != "results"}
    return ProbeRun(probed.exit_code, (), tuple(probed.files.get("results", ())), controls)
