"""What the position probe asks: the prompt to the letter, items, controls."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.experiments.items import item_names
from transformers_agci.experiments.position.questions import PROMPT, Control, by_item, control_questions, questions
from transformers_agci.inference.prompt import chat_content
from transformers_agci.inference.questions import YES_NO


def rows(items: int = 2, answers: Sequence[str] = ("Yes", "No"), name: str = "{item:03d}_{cell}.jpg") -> list[ProbeRow]:
    """File by file as docs/method.md has them: all Yes rows, then all No rows."""
    return [
        ProbeRow.parse(
            {
                "id": 9 * item + cell,
                "image": name.format(item=item, cell=cell, n=9 * item + cell),
                "caption": f"{answer} {item}",
                "position": position,
                "answer": answer,
                "url": "kept",
            },
            f"x.json:{item}",
        )
        for answer in answers
        for item in range(items)
        for cell, position in enumerate(POSITIONS)
    ]


def test_prompt_is_that_of_the_paper() -> None:
    assert PROMPT.format(caption="a dog") == (
        "Determine if there is a sub-image in the given image that matches the text following.\nText: a dog\n"
        "The answer should only contain 'Yes' or 'No', without reasoning process.\n"
    )


def test_one_question_per_row_with_its_image(tmp_path: Path) -> None:
    asked = questions(by_item(rows(1, ["Yes"])), tmp_path)
    assert len(asked) == 9
    assert asked[4].text == PROMPT.format(caption="Yes 0")
    assert asked[4].row["url"] == "kept" and asked[4].stop == YES_NO
    assert [image.name for question in asked for image in question.images] == [f"000_{k}.jpg" for k in range(9)]


def test_yes_and_no_rows_of_an_item_stand_together(tmp_path: Path) -> None:
    asked = questions(by_item(rows(2)), tmp_path)
    assert [(question.group, question.row["answer"]) for question in asked] == [
        (item, answer) for item in ("000", "001") for answer in ("Yes", "No") for _ in range(9)
    ]


def test_positives_keep_their_order(tmp_path: Path) -> None:
    given = rows(3, ["Yes"])
    assert [question.row for question in questions(by_item(given), tmp_path)] == [row.fields for row in given]


def test_braces_in_a_caption_are_text(tmp_path: Path) -> None:
    row = ProbeRow.parse(
        {"id": 0, "image": "a_0.jpg", "caption": "{caption} {0}", "position": "top_left", "answer": "Yes"}, "x:1"
    )
    assert "Text: {caption} {0}\n" in questions(by_item([row]), tmp_path)[0].text


def test_items_of_files_named_otherwise() -> None:
    assert item_names(rows(2, ["Yes"], "picture-{n}.png")) == ["picture-0.png"] * 9 + ["picture-9.png"] * 9
    names = item_names(rows(2, name="picture-{n}.png"))
    assert names[:18] == names[18:], "No rows about the same composites are the same items"


def test_controls_ask_once_per_item_and_answer(tmp_path: Path) -> None:
    for item in range(2):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{item:03d}_0.jpg")
    items = by_item(rows(3))
    text_only = control_questions(items, tmp_path, Control.TEXT_ONLY)
    assert len(text_only) == 6 and not any(question.images for question in text_only)
    assert {question.row["answer"] for question in text_only} == {"Yes", "No"}
    blank = control_questions(items, tmp_path, Control.BLANK_IMAGE)
    assert len(blank) == 4, "an item without its image is left to the probe's own complaint"
    assert len({question.images[0].key for question in blank}) == 1
    image = blank[0].images[0].open()
    assert image.size == (30, 20) and image.getcolors() == [(600, (255, 255, 255))]


def test_asking_needs_no_torch_to_be_planned() -> None:
    code = "import sys; from transformers_agci.experiments.position import metrics, questions"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_caption_with_an_image_mark_moves_no_image(tmp_path: Path) -> None:
    row = ProbeRow.parse(
        {"id": 0, "image": "a_0.jpg", "caption": "a <image> tag", "position": "top_left", "answer": "Yes"}, "x:1"
    )
    [question] = questions({"0": [row]}, tmp_path)
    text = {"type": "text", "text": PROMPT.format(caption="a <image> tag")}
    assert chat_content(question) == [{"type": "image"}, text]
