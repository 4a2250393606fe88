"""Rows of every benchmark in the form in which they are published, with images, and their scores by hand."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_samples import write_json, write_rows
from tiny_checkpoints import random_image

from transformers_agci.inference.answer import Answer, Answerer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path]) -> str:
    return str(tiny_checkpoint("llava"))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Give the model its answers: the one whose key stands in the prompt, "?" where none does."""

    def record(answers: dict[str, str]) -> None:
        def answer(self: Answerer, inputs: dict[str, Any], stop: Any) -> list[Answer]:
            prompts = self.processor.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
            return [Answer(next((text for key, text in answers.items() if key in prompt), "?")) for prompt in prompts]

        monkeypatch.setattr(Answerer, "answer", answer)

    return record


def save_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random_image(number).save(path)


def encoded() -> dict[str, Any]:
    buffer = io.BytesIO()
    random_image(1).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def scienceqa(root: Path) -> Path:
    write_json(root / "ScienceQA" / "llava_test_CQM-A.json", samples.scienceqa_questions())
    save_images(root / "ScienceQA" / "images", ["11/image.png", "13/image.png"])
    return root / "ScienceQA"


def pope(root: Path) -> Path:
    """A parquet file in lmms-lab's columns: six images, one question each, in every category."""
    rows = [
        {
            "question_id": str(n),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image": encoded(),
            "image_source": f"COCO_{n}",
            "category": category,
        }
        for category, labels in samples.POPE_LABELS.items()
        for n, (thing, label) in enumerate(zip(samples.POPE_OBJECTS, labels, strict=True))
    ]
    (root / "POPE").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "POPE" / "test-00000-of-00001.parquet")
    return root / "POPE"


def textvqa(root: Path) -> Path:
    write_rows(root / "TextVQA" / "llava_textvqa_val_v051_ocr.jsonl", samples.textvqa_questions())
    write_json(root / "TextVQA" / "TextVQA_0.5.1_val.json", samples.textvqa_annotations())
    save_images(root / "TextVQA" / "train_images", [row["image"] for row in samples.textvqa_questions()])
    return root / "TextVQA"


def hallusionbench(root: Path) -> Path:
    rows = samples.hallusionbench_questions()
    write_json(root / "HallusionBench" / "HallusionBench.json", rows)
    save_images(root / "HallusionBench" / "data", [row["filename"] for row in rows if row["filename"]])
    return root / "HallusionBench"


def crpe(root: Path) -> Path:
    rows = samples.crpe_questions()
    write_rows(root / "CRPE" / "crpe_relation.jsonl", rows)
    save_images(root / "CRPE", sorted({row["image"] for row in rows}))
    return root / "CRPE"


def mmmu(root: Path) -> Path:
    rows = [
        {**{k: v for k, v in row.items() if k != "response"}, "image_1": encoded(), "image_2": None}
        for row in samples.mmmu_rows([""] * 5)
    ]
    folder = root / "MMMU_Pro" / "standard (10 options)"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    return root / "MMMU_Pro"


# name -> where its files come from, the recorded answers, figures computed by hand
EVERY: dict[str, tuple[Callable[[Path], Path], dict[str, str], dict[str, Any]]] = {
    # Gold A, B, C, A; the second is wrong, the third of five forms that are read.
    "scienceqa": (
        scienceqa,
        {"of 11?": "A", "of 12?": "A", "of 13?": "The answer is C.", "of 14?": "A. one"},
        {"accuracy_pct": 75, "correct": 3, "count": 4, "image_accuracy_pct": 100, "image_count": 2},
    ),
    # Gold yes, no, yes, no in each of three categories; one miss: recall 0.5, precision 1.
    "pope": (
        pope,
        {"a dog": "Yes", "a cat": "No.", "a car": "There is not.", "a cup": "no"},
        {"mean_f1": pytest.approx(2 / 3), "count": 12},
    ),
    # 3 of 10 humans, 9 of 10, none.
    "textvqa": (
        textvqa,
        {"colour": "Red", "many": "two", "brand": "Mars"},
        {"accuracy": pytest.approx((0.9 + 1 + 0) / 3), "count": 3},
    ),
    # The paper's population leaves out the row without an image: right, right, right, unclear.
    "hallusionbench": (
        hallusionbench,
        {"VD 0": "Yes", "VD 1": "No, it is not.", "VS 1": "yes", "VS 2": "Maybe"},
        {"aAcc_pct": 75, "qAcc_pct": 50, "fAcc_pct": 75, "unclear": 1, "count": 4},
    ),
    # One rotation of one question wrong: subject 1/2.
    "crpe": (
        crpe,
        {
            f"Question {row['question_id']}.": row["correct_option"] if row["question_id"] != 5 else "B."
            for row in reversed(samples.crpe_questions())
        },
        {"overall": pytest.approx((0.5 + 1 + 1) / 3), "count": 24},
    ),
    # Right, wrong, undecided (1/4), right, right.
    "mmmu_pro": (
        mmmu,
        {"of 0": "Answer: B", "of 1": "A", "of 2": "purple", "of 3": "(B)", "of 4": "B. green"},
        {"accuracy": pytest.approx((1 + 0 + 0.25 + 1 + 1) / 5), "undecided": 1, "decided_correct": 3},
    ),
}


def figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
