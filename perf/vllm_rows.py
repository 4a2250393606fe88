"""Rows per second of the engines transformers and vllm on the same rows, and how far their answers lie apart.

    python perf/vllm_rows.py                    the embedded model, 40 items, Yes and No rows, two lambdas
    python perf/vllm_rows.py --model Qwen/Qwen2.5-VL-3B-Instruct --dtype bfloat16 --items 100 \
        --engine_args '{"max_model_len": 4096}'                                                     on a GPU

Each engine is asked one item first, which starts vLLM and warms both up; the time of that stands apart. The clock is
the wall's, since vLLM works in processes of its own: the machine should be idle.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from machine import announce, say

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.engines import EngineOptions, VllmOptions, open_engine
from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.experiments.position.questions import questions
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.questions import Question, QuestionSet
from transformers_agci.inference.runner import RunOptions

LAMBDAS = (0.0, 0.5)
ONE_ITEM = 18  # its Yes and No rows


class Measured(NamedTuple):
    """One engine at one lambda."""

    start: float  # seconds until the first item was answered
    seconds: float  # for the rows after that
    rows: list[dict[str, Any]]


def measure(engine: Engine, asked: Sequence[Question], lam: float, folder: Path) -> Measured:
    """Ask the first item, then the others."""
    options = AnswerOptions(run=RunOptions(progress=False))
    times = [time.perf_counter()]
    for name, some in (("first", asked[:ONE_ITEM]), ("others", asked[ONE_ITEM:])):
        answer_questions(engine, QuestionSet(some), [lam], [folder / f"{engine.name}.{name}.lam{lam}.jsonl"], options)
        times.append(time.perf_counter())
    written = (folder / f"{engine.name}.others.lam{lam}.jsonl").read_text().splitlines()
    return Measured(times[1] - times[0], times[2] - times[1], [json.loads(line) for line in written])


def compared(first: Measured, second: Measured) -> str:
    """Words that are equal, and the largest difference of the margins."""
    pairs = list(zip(first.rows, second.rows, strict=True))
    equal = sum(a["prediction"] == b["prediction"] for a, b in pairs)
    apart = max(abs(a["margin"] - b["margin"]) for a, b in pairs if None not in (a["margin"], b["margin"]))
    return f"{equal} of {len(pairs)} words equal, margins differ by at most {apart:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(embedded_model_path()))
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gpu_memory_utilization", type=float)
    parser.add_argument("--engine_args", type=json.loads, default={"max_model_len": 512, "enforce_eager": True})
    args = parser.parse_args()
    announce()
    options = LoadOptions(args.model, dtype=args.dtype)
    vllm = VllmOptions(gpu_memory_utilization=args.gpu_memory_utilization, engine_args=args.engine_args)
    with tempfile.TemporaryDirectory() as name:
        data = embedded_data(Path(name) / "set", args.items, 0, None)
        asked = questions(data.items, data.img_path)
        found: dict[tuple[str, float], Measured] = {}
        for kind in ("transformers", "vllm"):
            engine = open_engine(EngineOptions(kind, vllm=vllm if kind == "vllm" else VllmOptions()), options)
            for lam in LAMBDAS:
                found[kind, lam] = measure(engine, asked, lam, Path(name))
            engine.close()
    say("\n| engine | lambda | rows | until the first item (s) | rows/s after it |\n|---|---|---|---|---|")
    for (kind, lam), one in found.items():
        say(f"| {kind} | {lam:g} | {len(one.rows)} | {one.start:.1f} | {len(one.rows) / one.seconds:.1f} |")
    for lam in LAMBDAS:
        say(f"lambda {lam:g}: {compared(found['transformers', lam], found['vllm', lam])}")


if __name__ == "__main__":
    main()
