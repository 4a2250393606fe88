"""The position probe (paper, section on the probe dataset): is there a sub-image that matches the caption?

The same target is shown in every cell of a composite; a model without spatial bias answers alike in all of them.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from transformers_agci.data.probe_rows import IMAGES_PROMPT, LETTERS, OPTIONS_PROMPT, PROMPT, ProbeRow
from transformers_agci.errors import InputError
from transformers_agci.experiments.items import item_names
from transformers_agci.inference.questions import YES_NO, BlankImage, ImageFile, ImageSource, Question, up_to

LETTER_TOKENS = 8  # enough for "(A)" and the end of the answer


class Control(StrEnum):
    """What takes the image's place when the question is asked without it."""

    TEXT_ONLY = "text_only"
    BLANK_IMAGE = "blank_image"


def by_item(rows: Sequence[ProbeRow]) -> dict[str, list[ProbeRow]]:
    """Rows of each item, items in the order of their first row; an item's Yes rows come first, then its No rows."""
    items: dict[str, list[ProbeRow]] = {}
    for name, row in zip(item_names(rows), rows, strict=True):
        items.setdefault(name, []).append(row)
    return {name: sorted(of_item, key=lambda row: row.answer != "Yes") for name, of_item in items.items()}


def questions(items: dict[str, list[ProbeRow]], img_path: Path) -> list[Question]:
    """One question per row; an item's rows are one group. `img_path` is the folder that the rows' images lie below."""
    return [
        _question(row, item, tuple(ImageFile(img_path, image, row.where) for image in row.images))
        for item, rows in items.items()
        for row in rows
    ]


def control_questions(items: dict[str, list[ProbeRow]], img_path: Path, control: Control) -> list[Question]:
    """The same captions without the image: one question per item and answer, since the cells do not differ.

    A blank image is as large as the one it stands for; an item whose image cannot be opened is left out.
    """
    asked = []
    for item, rows in items.items():
        for row in _first_of_each_answer(rows):
            images: tuple[ImageSource, ...] = ()
            if control is Control.BLANK_IMAGE:
                try:
                    width, height = ImageFile(img_path, row.images[0], row.where).open().size
                except InputError:  # the probe itself names the row
                    continue
                images = (BlankImage(width, height),) * len(row.images)
            asked.append(_question(row, item, images))
    return asked


def _question(row: ProbeRow, item: str, images: tuple[ImageSource, ...]) -> Question:
    return Question(
        row=row.fields,
        where=row.where,
        text=_text(row),
        images=images,
        group=item,
        stop=up_to(LETTER_TOKENS) if row.options else YES_NO,
        marks=False,  # a caption may hold the text <image>
    )


def prompt_form(row: ProbeRow) -> str:
    """The question before the row's texts are put into it."""
    return OPTIONS_PROMPT if row.options else PROMPT if len(row.images) == 1 else IMAGES_PROMPT


def _text(row: ProbeRow) -> str:
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, row.options, strict=False))
    return prompt_form(row).format(caption=row.caption, options=listed)


def _first_of_each_answer(rows: Sequence[ProbeRow]) -> Iterator[ProbeRow]:
    for answer in dict.fromkeys(row.answer for row in rows):
        yield next(row for row in rows if row.answer == answer)
