"""Attention backends on the same rows: which answers differ, and how close these answers were.

    python perf/parity.py                       the embedded model, Yes and No rows, two lambdas, any machine

Everything is compared with float32 under stock SDPA, and with stock SDPA of its own dtype. A flip is an answer whose
word differs; its margin is the yes logit minus the no logit of what it is compared with. eager and sdpa are the
attention of decoder and vision tower; "quick" is the tower as `agci` runs it: variable-length attention (on a GPU in
bfloat16 torch's own kernel) and patches embedded by a matrix product.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from machine import announce, say

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.experiments.position.questions import questions
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.questions import Question, QuestionSet
from transformers_agci.inference.runner import RunOptions, output_paths

LAMBDAS = (0.0, 0.5)


class Backend(NamedTuple):
    name: str
    dtype: str
    attention: str
    vision: str  # of LoadOptions


BACKENDS = [
    Backend(f"{name}, {dtype}", dtype, attention, vision)
    for dtype in ("float32", "bfloat16")
    for name, attention, vision in (("sdpa", "sdpa", "stock"), ("eager", "eager", "stock"), ("quick", "sdpa", "auto"))
]


def answers(backend: Backend, asked: Sequence[Question]) -> tuple[str, list[dict[str, Any]]]:
    """What the vision tower ran, and the result rows of all lambdas."""
    loaded = load(
        LoadOptions(
            str(embedded_model_path()),
            dtype=backend.dtype,
            attn_implementation=backend.attention,
            vision=backend.vision,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        outputs = output_paths(Path(folder) / "answers.jsonl", LAMBDAS)
        options = AnswerOptions(run=RunOptions(progress=False))
        answer_questions(loaded, QuestionSet(asked), LAMBDAS, outputs, options)
        rows = [json.loads(line) for path in outputs for line in path.read_text().splitlines()]
    return str(loaded.identity["vision_attention"]), rows


def difference(reference: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    """Two cells: the largest change of a margin; the flips with the reference's margins."""
    pairs = list(zip(reference, rows, strict=True))
    change = max(abs(one["margin"] - other["margin"]) for one, other in pairs)
    flips = sorted((one["margin"] for one, other in pairs if one["prediction"] != other["prediction"]), key=abs)
    margins = ", ".join(f"{margin:+.3f}" for margin in flips)
    return f"{change:.2g} | {len(flips)}{f': {margins}' if flips else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20, help="items of nine positions (default 20, 720 answers)")
    args = parser.parse_args()
    announce()
    with tempfile.TemporaryDirectory() as folder:
        data = embedded_data(Path(folder) / "set", args.items, seed=0)
        asked = questions(data.items, data.img_path)
        stock: dict[str, list[dict[str, Any]]] = {}
        for backend in BACKENDS:
            vision, rows = answers(backend, asked)
            first = stock.setdefault(backend.dtype, rows)
            if backend is BACKENDS[0]:
                smallest = ", ".join(f"{margin:.3f}" for margin in sorted(abs(row["margin"]) for row in rows)[:5])
                say(
                    f"{len(rows)} answers; smallest margins of stock float32: {smallest}\n\n"
                    "| | vision tower | margins change by, to stock float32 | flips | to stock of its dtype | flips |\n"
                    "|---|---|---|---|---|---|"
                )
            say(f"| {backend.name} | {vision} | {difference(stock['float32'], rows)} | {difference(first, rows)} |")


if __name__ == "__main__":
    main()
