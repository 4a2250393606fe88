"""The embedded model on a POPE-form set built from its atlas: rows, command and score are POPE's.

Its questions are the position probe's, the only ones that the embedded model has learnt, and are asked as they stand.
"""

import json
from pathlib import Path

import pytest
from benchmark_samples import write_rows

from transformers_agci.cli import main
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.embedded.probe_set import build_probe_set
from transformers_agci.experiments.position.questions import PROMPT

pytestmark = pytest.mark.slow


def pope_rows(folder: Path, items: int) -> tuple[Path, Path]:
    """Question file (lmms-lab's columns, images as files) and image folder: nine Yes and nine No rows per item."""
    made = build_probe_set(folder, items)
    assert made.negatives is not None
    rows = [json.loads(line) for path in (made.rows, made.negatives) for line in path.read_text().splitlines()]
    questions = [
        {
            "question_id": str(n),
            "question": PROMPT.format(caption=row["caption"]),
            "answer": row["answer"].lower(),
            "image_source": row["image"].removesuffix(".jpg"),
            "image": row["image"],
            "category": "random",
        }
        for n, row in enumerate(sorted(rows, key=lambda row: row["image"]))
    ]
    return write_rows(folder / "pope.jsonl", questions), made.images


def test_at_least_eighty_percent_balanced_accuracy(tmp_path: Path) -> None:
    if not (embedded_model_path() / "model.safetensors").is_file():
        pytest.skip("the embedded model's checkpoint is not there")
    questions, images = pope_rows(tmp_path, items=10)
    out = tmp_path / "answers.jsonl"
    arguments = [
        "benchmark",
        "pope",
        "--model",
        str(embedded_model_path()),
        "--data",
        str(questions),
        "--quiet",
        "--image_root",
        str(images),
        "--prompt",
        "{question}",
        "--max_new_tokens",
        "4",
        "--answer_file",
        str(out),
        "--global_context_lambda",
        "0",
    ]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "answers.score.json").read_text())["categories"]["random"]
    assert found["tp"] + found["fn"] == found["tn"] + found["fp"] == 90
    assert (found["tp"] / 90 + found["tn"] / 90) / 2 >= 0.8
