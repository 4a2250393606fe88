"""A few made-up rows of each benchmark in its users' layout, with recorded answers whose score is known by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.cli import main

Row = dict[str, Any]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def scienceqa_questions() -> list[Row]:
    """Four items, the first and third with an image; the right letters are A, B, C, A."""
    rows: list[Row] = []
    for number, (letter, image) in enumerate(zip("ABCA", (True, False, True, False), strict=True), 11):
        text = "<image>\n" * image + f"Context: made up.\nWhich of {number}?\nA. one\nB. two\nlines\nC. three"
        row: Row = {"id": str(number)}
        if image:
            row["image"] = f"{number}/image.png"
        row["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": letter}]
        rows.append(row)
    return rows


def scienceqa_answers(texts: list[str]) -> list[Row]:
    """LLaVA's answer file."""
    prompts = [("<image>\n" if "image" in row else "") + "..." for row in scienceqa_questions()]
    return [
        {"question_id": row["id"], "prompt": prompt, "text": text}
        for row, prompt, text in zip(scienceqa_questions(), prompts, texts, strict=False)
    ]


POPE_OBJECTS = ("dog", "cat", "car", "cup")
POPE_LABELS = {
    "random": ("yes", "no", "yes", "no"),
    "popular": ("yes", "no", "yes", "no"),
    "adversarial": ("yes", "no", "yes", "no"),
}


def pope_label_files(folder: Path) -> Path:
    """coco_pope_<category>.json: two images, four questions in each category."""
    for category, labels in POPE_LABELS.items():
        write_rows(
            folder / f"coco_pope_{category}.json",
            [
                {
                    "question_id": n,
                    "image": f"COCO_{n // 3}.jpg",
                    "text": f"Is there a {thing} in the imange?",
                    "label": label,
                }
                for n, (thing, label) in enumerate(zip(POPE_OBJECTS, labels, strict=True), 1)
            ],
        )
    return folder


def pope_questions(keyed: bool = True) -> list[Row]:
    """LLaVA's question file; without `keyed` it holds ids and categories only."""
    rows = []
    for base, category in ((1, "adversarial"), (10000001, "random"), (20000001, "popular")):
        for n, thing in enumerate(POPE_OBJECTS, 1):
            row: Row = {"question_id": base + n - 1, "category": category}
            if keyed:
                row |= {
                    "image": f"COCO_{n // 3}.jpg",
                    "text": f"Is there a {thing} in the image?\nAnswer the question using a single word or phrase.",
                }
            rows.append(row)
    return rows


def textvqa_annotations() -> Row:
    """Three questions on two images."""
    rows = [
        ("00aa00aa00aa00aa", "What colour?", ["red"] * 3 + ["blue"] * 7),
        ("00aa00aa00aa00aa", "How many?", ["two"] * 5 + ["2"] * 4 + ["three"]),
        ("11bb11bb11bb11bb", "Which brand?", ["hershey's"] * 10),
    ]
    return {
        "data": [{"image_id": image, "question": question, "answers": answers} for image, question, answers in rows]
    }


def textvqa_questions() -> list[Row]:
    """LLaVA's question file: the prompt is finished."""
    return [
        {
            "question_id": row["image_id"],
            "image": f"{row['image_id']}.jpg",
            "category": "default",
            "text": f"{row['question']}\nReference OCR token: A, B\nAnswer the question using a single word or phrase.",
        }
        for row in textvqa_annotations()["data"]
    ]


TEXTVQA_TEXTS = ("Red.", "2", "Hershey's")


def textvqa_answers() -> list[Row]:
    return [
        {"question_id": row["question_id"], "prompt": row["text"], "text": text}
        for row, text in zip(textvqa_questions(), TEXTVQA_TEXTS, strict=True)
    ]


def crpe_questions(categories: tuple[str, ...] = ("subject", "predicate", "object")) -> list[Row]:
    """Two questions of four rotations in each category."""
    return [
        {
            "question_id": number,
            "image": f"coco/val2017/{number // 4}.jpg",
            "category": category,
            "text": f"Which?\nA. a\nB. b\nC. c\nD. d\nQuestion {number}.",
            "correct_option": "ABCD"[rotation],
        }
        for number, (category, _, rotation) in enumerate(
            (category, question, rotation) for category in categories for question in (0, 1) for rotation in range(4)
        )
    ]


def hallusionbench_questions() -> list[Row]:
    """One VD pair on two figures and one VS pair without and with an image."""
    fields = ("category", "visual_input", "figure_id", "gt_answer", "filename")
    rows = [
        ("VD", "1", "0", "1", "./VD/illusion/0_0.png"),
        ("VD", "2", "1", "0", "./VD/illusion/0_1.png"),
        ("VS", "0", "0", "1", None),
        ("VS", "1", "1", "1", "./VS/chart/0_1.png"),
        ("VS", "2", "2", "0", "./VS/chart/0_2.png"),
    ]
    return [
        {
            "subcategory": "made",
            "set_id": "0",
            "question_id": "0",
            "question": f"Is it so in {row[0]} {row[2]}?",
            **dict(zip(fields, row, strict=True)),
        }
        for row in rows
    ]


def hallusionbench_answers(texts: list[str], field: str = "prediction") -> list[Row]:
    return [{**row, field: text} for row, text in zip(hallusionbench_questions(), texts, strict=True)]


def mmmu_rows(responses: list[Any]) -> list[Row]:
    """Result rows of MMMU-Pro with four options each."""
    return [
        {
            "id": f"test_{subject}_{n}",
            "question": f"Which of {n} is <image 1>?",
            "options": "['red', 'green', 'blue', 'it']",
            "answer": "B",
            "subject": subject,
            "response": response,
        }
        for n, (response, subject) in enumerate(zip(responses, ("Art", "Art", "Math", "Math", "Math"), strict=False))
    ]


def score(tmp_path: Path, *arguments: Any) -> dict[str, Any]:
    """Run the command; the result file with the items as `items`."""
    out, items = tmp_path / "out.json", tmp_path / "items.jsonl"
    assert main(["score", *map(str, arguments), "--json", str(out), "--items", str(items)]) == 0
    return {**json.loads(out.read_text()), "items": [json.loads(line) for line in items.read_text().splitlines()]}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one sentence on stderr of a command that must fail."""
    assert main(["score", *map(str, arguments)]) == 2
    return capsys.readouterr().err
